"""Where damaged files go: out of the way, never away."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from isoloss.storage import sync, writing


def quarantine(damaged: Path, folder: Path) -> Path | None:
    """Move a damaged file or folder into the `quarantine` of a run folder.

    Args:
        damaged: What is damaged; nothing happens where it is not there.
        folder: The run folder.

    Returns:
        Where it is now.
    """
    if not damaged.exists():
        return None
    return move_aside(damaged, folder / "quarantine")


def move_aside(what: Path, folder: Path) -> Path:
    """Move a file or folder into another under a name with the time that is not taken.

    Args:
        what: What to move.
        folder: Where to; made where it is missing.

    Returns:
        Where it is now.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        target, count = folder / f"{what.name}-{stamp}", 1
        while target.exists():
            count += 1
            target = folder / f"{what.name}-{stamp}-{count}"
        os.replace(what, target)  # noqa: PTH105
        sync(folder)
        sync(what.parent)
    return target
