"""How the commands print."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)


def table(*headings: str) -> Table:
    """A plain table; a heading that ends in > is of numbers."""
    made = Table(box=None, pad_edge=False)
    for heading in headings:
        right = heading.endswith(">")
        made.add_column(heading.rstrip(">"), justify="right" if right else "left", no_wrap=True)
    return made
