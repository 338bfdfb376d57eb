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


def duration(seconds: float) -> str:
    """A time to read: `42 s`, `3.5 min`, `1.2 h`, `6.1 d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
