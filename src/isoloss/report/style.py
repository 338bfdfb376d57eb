"""One style for all figures: legible in print, in grayscale and to the color-blind."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""From the palette of Okabe and Ito (2008), ordered from dark to light."""

DASHES = ("-", "--", "-.", ":")
"""A second mark of what the colors tell apart, for grayscale."""

SAVED_DPI = 200

STYLE: dict[Any, Any] = {
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
    """Draw in isoloss' style, whatever the user's own is, and leave theirs as it was.

    Yields:
        Nothing.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


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
    files = [folder / f"{name}.png", folder / f"{name}.pdf"]
    png, pdf = files
    with style():
        figure.savefig(png)
        engine = figure.get_layout_engine()
        figure.set_layout_engine("none")  # laid out already: once is half of the work
        figure.savefig(pdf, metadata={"CreationDate": None})
        figure.set_layout_engine(engine)
    return files
