"""One style for all figures: legible in print, in grayscale and to the color-blind."""

from __future__ import annotations

import textwrap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from isoloss.errors import require_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""From the palette of Okabe and Ito (2008), ordered from dark to light."""
DASHES = ("-", "--", "-.", ":")
"""A second mark of what the colors tell apart, for grayscale."""
SAVED_DPI = 200
CAPTION_CHARACTERS = 15.5  # of the captions' size, in an inch
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.dpi": 100,
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "savefig.dpi": SAVED_DPI,
}


@contextmanager
def style() -> Generator[None]:
    """Draw in isoloss' style, whatever the user's own is, and leave theirs as it was."""
    mpl: Any = require_extra("matplotlib", "report")
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


@contextmanager
def drawing(width: float, height: float, title: str = "") -> Generator[Figure]:
    """An empty figure of a size in inches, to be drawn on in isoloss' style."""
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        yield figure


def caption(figure: Figure, lines: Sequence[str]) -> None:
    """Write sentences below a figure, broken to its width."""
    width = int(figure.get_figwidth() * CAPTION_CHARACTERS)
    text = "\n".join(textwrap.fill(line, width) for line in lines)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8)


def color(k: int) -> str:
    """The color of the k-th method."""
    return COLORS[k % len(COLORS)]


def count(runs: int) -> str:
    """A number of runs in words."""
    return "1 run" if runs == 1 else f"{runs} runs"


def save(figure: Figure, folder: FilePath, name: str) -> list[FilePath]:
    """Write a figure as NAME.png and NAME.pdf.

    Args:
        figure: What to write.
        folder: Made when missing.
        name: Without an ending.

    Returns:
        The two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    with style():
        figure.savefig(png)
        engine = figure.get_layout_engine()
        figure.set_layout_engine("none")  # laid out already: once is half of the work
        figure.savefig(pdf, metadata={"CreationDate": None})
        figure.set_layout_engine(engine)
    return [png, pdf]
