"""What a page is made of, figures and tables in one style, and the page of all chapters."""

from __future__ import annotations

import base64
import io
import os
import re
import textwrap
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from isoloss import __version__
from isoloss.arguments import checked
from isoloss.disk import (
    ResultsError,
    Stamp,
    as_folder,
    atomically,
    read_bytes,
    refuse_links,
)
from isoloss.errors import InputError, IsolossError, kind, require_extra, shown
from isoloss.files import read_json, write_text
from isoloss.store.folder import LONGEST_NAME

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito (2008), dark to light
DASHES = ("-", "--", "-.", ":")  # a second mark of what the colors tell apart, for grayscale
SAVED_DPI, CSS_DPI = 200, 96
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "savefig.dpi": SAVED_DPI,
}
CHAPTER = "chapter.json"  # of each experiment, so that each can be reported by itself
PAGE = "index.html"
LONG = 24  # letters of an entry, from which on it may be broken
NONE = "-"  # in a table, where there is no number
LATEX = {
    **{character: f"\\{character}" for character in "#$%&_{}"},
    "\\": r"\textbackslash{}",
    "[": "{[}",  # after a line's end, it would be its height
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
}


class Part(BaseModel):
    """A part of a chapter."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Picture(Part):
    """A figure."""

    file: str  # its PNG, directly beside the chapter; the PDF has the same name
    png: Stamp
    pdf: Stamp
    title: str
    alt: str
    caption: str = ""
    folded: bool = False  # shown on demand only


class Table(Part):
    """A table, its entries as they are to be read; a line break within one is kept."""

    title: str
    columns: list[str]
    rows: list[list[str]]  # the first entry of each is its heading
    caption: str = ""
    words: bool = False  # entries are words rather than numbers
    folded: bool = False

    @property
    def wordy(self) -> list[bool]:
        """Of each column, whether it holds long text, which is broken and begins at the left."""
        columns = zip(*self.rows, strict=True) if self.rows else [""] * len(self.columns)
        return [any(len(line) > LONG for x in one for line in x.split("\n")) for one in columns]

    def markdown(self) -> str:
        """Its columns and rows in Markdown: words in the first column, numbers in the others."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = ["".join(map(_cell, row)) for row in (self.columns, rule, *self.rows)]
        return "".join(f"|{line}\n" for line in lines)

    def latex(self) -> str:
        """A `tabular` with rules of `booktabs`; second lines of entries as small rows."""
        safe = str.maketrans(LATEX)
        columns, *rows = [[x.translate(safe) for x in row] for row in (self.columns, *self.rows)]
        lines = [
            "% needs \\usepackage{booktabs}",
            f"\\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            "\\toprule",
            " & ".join(columns) + r" \\",
            "\\midrule",
        ]
        for row in rows:
            parts = [entry.partition("\n") for entry in row]
            lines.append(" & ".join(first for first, _, _ in parts) + r" \\")
            if any(second for _, _, second in parts):
                small = [f"\\scriptsize {low}" if low else "" for _, _, low in parts]
                lines.append(" & ".join(small) + r" \\[2pt]")
        lines += ["\\bottomrule", "\\end{tabular}", f"% {self.caption}"]
        return "\n".join(lines) + "\n"


class SceneRun(Part):
    """The points of a run in a scene, one entry for each in every list."""

    name: str
    step: list[int]
    position: list[float]  # share of the walk's length behind it
    values: dict[str, list[float | None]]  # by label; None where it was not measured
    scaled: list[list[float]]  # scores, a list for each component
    unscaled: list[list[float]]


class SceneMark(Part):
    """A single point in a scene."""

    name: str
    scaled: list[float]
    unscaled: list[float]


class Scene(Part):
    """The PCA of the walks of a method, to be rotated; scores with scaled and unscaled axes."""

    title: str
    alt: str
    captions: dict[str, str]
    ratios: dict[str, list[float]]  # explained share of the variance of each component
    runs: list[SceneRun]
    marks: list[SceneMark]


class Section(Part):
    """Paragraphs below a heading, then tables, scenes and pictures."""

    title: str
    text: list[str] = []
    tables: list[Table] = []
    scenes: list[Scene] = []
    pictures: list[Picture] = []


class Chapter(Part):
    """Everything the page says of one experiment."""

    experiment: str
    found: list[str] = []  # what came out, a sentence or two for each method
    lead: str
    missing: list[str]  # what could not be reported, a sentence each
    sections: list[Section]

    @property
    def pictures(self) -> list[Picture]:
        """The figures of all sections."""
        return [picture for section in self.sections for picture in section.pictures]


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
    width = int(figure.get_figwidth() * 15.5)  # characters of this size in an inch
    text = "\n".join(textwrap.fill(line, width) for line in lines)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8)


def color(k: int) -> str:
    """The color of the k-th method."""
    return COLORS[k % len(COLORS)]


@checked
def save(figure: Figure, folder: str | os.PathLike[str], name: str) -> list[FilePath]:
    """Write a figure as NAME.png and NAME.pdf, each there whole or not at all.

    Args:
        figure: What to write.
        folder: Created if it does not exist.
        name: Without an extension.

    Returns:
        The two files.

    Raises:
        InputError: One of these is none.
    """
    if not hasattr(figure, "savefig"):
        raise InputError(f"figure must be a matplotlib figure, got {kind(figure)}")
    place = as_folder(folder)
    if (
        not name
        or FilePath(name).name != name
        or not name.isprintable()
        or len(name.encode()) > LONGEST_NAME
    ):
        raise InputError(f"name must be that of a file without its extension, got {shown(name)}")
    png, pdf = place / f"{name}.png", place / f"{name}.pdf"
    _save(figure, png, pdf)
    return [png, pdf]


def _png(figure: Figure, file: FilePath | io.BytesIO, **how: Any) -> None:
    figure.savefig(file, format="png", **how)


def _save(
    figure: Figure, png: FilePath, pdf: FilePath, draw: Callable[[Figure, FilePath], object] = _png
) -> tuple[Stamp, Stamp]:
    undated: Any = {"CreationDate": None}
    with style():
        of_png = atomically(png, lambda part: draw(figure, part))
        engine = figure.get_layout_engine()
        figure.set_layout_engine("none")  # laid out already: once is half of the work
        of_pdf = atomically(pdf, lambda part: figure.savefig(part, format="pdf", metadata=undated))
        figure.set_layout_engine(engine)
    return of_png, of_pdf


def _small_png(figure: Figure, file: FilePath) -> None:
    """A PNG with a palette: a quarter of the size, and no difference that is seen."""
    from PIL import Image

    plain = Image.Dither.NONE
    _png(figure, drawn := io.BytesIO(), pil_kwargs={"compress_level": 0})
    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=plain)
        few.save(file, format="png", compress_level=9, dpi=(SAVED_DPI, SAVED_DPI))


def picture(figure: Figure, folder: FilePath, name: str, **words: Any) -> Picture:
    """Save a figure, and say of it on the page what the words are: the fields of `Picture`."""
    file = folder / f"{name}.png"
    png, pdf = _save(figure, file, file.with_suffix(".pdf"), _small_png)
    return Picture(file=file.name, png=png, pdf=pdf, **words)


def count(runs: int) -> str:
    """A number of runs in words."""
    return "1 run" if runs == 1 else f"{runs} runs"


def number(value: Any) -> str:
    """A number for people, to four figures; a dash where there is none."""
    if pd.isna(value):
        return NONE
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{int(value):,}" if isinstance(value, (int, float)) else str(value)


def _cell(text: str) -> str:
    safe = re.sub(r"([\\|<\[`])", r"\\\1", text).replace("\n", "<br>")
    return f" {safe} |" if safe else " |"


def load_chapter(folder: FilePath) -> Chapter:
    """The chapter in an experiment's folder; a ResultsError where it cannot be read."""
    file = folder / CHAPTER
    try:
        return Chapter.model_validate(read_json(file))
    except (ResultsError, ValidationError) as error:
        raise ResultsError(
            f"{file} cannot be read: it is damaged or from another version; run 'isoloss report "
            f"{folder.name}' again"
        ) from error


def load_image(folder: FilePath, picture: Picture) -> dict[str, Any]:
    """A figure of a chapter for the page, its size in CSS pixels; only of files directly beside it:
    a chapter received from somebody else could name any file of this machine."""
    name, again = picture.file, f"run 'isoloss report {folder.name}' again"
    file = folder / name
    if FilePath(name).name != name or "\\" in name or file.resolve().parent != folder.resolve():
        raise ResultsError(
            f"{folder / CHAPTER} names the figure {name!r}, which must be a file directly beside "
            f"it; {again}"
        )
    try:
        content = read_bytes(file)
    except IsolossError as error:
        raise ResultsError(f"{error}; {again}") from error
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 24:
        raise ResultsError(f"{file} is not a PNG; {again}")
    try:
        picture.png.check(file, content)
        picture.pdf.check(file.with_suffix(".pdf"))
    except ResultsError as error:
        raise ResultsError(f"{error}; {again}") from error
    # width and height are in the PNG's first chunk (RFC 2083, 4.1.1)
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    return {
        "data": "data:image/png;base64," + base64.b64encode(content).decode(),
        "width": round(width * CSS_DPI / SAVED_DPI),
        "height": round(height * CSS_DPI / SAVED_DPI),
    }


def write_page(report: FilePath) -> FilePath:
    """Put the chapters below `OUT/report` together as `index.html`, which is returned."""
    write_text(report / PAGE, page_text(report))
    return report / PAGE


def plotly_js() -> bytes:
    """What draws scenes in a page."""
    return require_extra("plotly.offline", "report").get_plotlyjs().encode()


def unpacked(text: str, size: int) -> bytes | None:
    """What was packed into a page, of no more than a size; None where it is another."""
    try:
        return zlib.decompressobj().decompress(base64.b64decode(text), size + 1)
    except (ValueError, zlib.error):
        return None


def page_text(report: FilePath, plotly: str = "") -> str:
    """The page of the chapters below `OUT/report`; with scenes, it holds plotly.js, packed to
    two fifths of its size for the browser to unpack, or this."""
    jinja2: Any = require_extra("jinja2", "report")
    chapters: list[dict[str, Any]] = []
    for folder in sorted(file.parent for file in report.glob(f"*/{CHAPTER}")):
        refuse_links(report, folder)
        chapter = load_chapter(folder)
        images = {one.file: load_image(folder, one) for one in chapter.pictures}
        chapters.append({"chapter": chapter, "images": images})
    loader, strict = jinja2.PackageLoader("isoloss.report"), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=strict)
    scenes = any(section.scenes for one in chapters for section in one["chapter"].sections)
    return environment.get_template("page.html.jinja").render(
        version=__version__,
        chapters=chapters,
        style=loader.get_source(environment, "page.css")[0],
        script=loader.get_source(environment, "page.js")[0],
        plotly=(plotly or _packed(plotly_js())) if scenes else "",
    )


def _packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()
