"""How modules and names are listed in sentences."""

from __future__ import annotations

from torch import nn


def named(path: str, module: nn.Module | None) -> str:
    """A module for people: `layers.1 (Dropout)`."""
    return f"{path or 'the model'} ({type(module).__name__})"


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
