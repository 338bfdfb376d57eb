"""What a report says of each experiment, as data beside its figures, and the page that holds it.

The page is put together from the `chapter.json` of every experiment, so that each can be reported
by itself. It is one file that holds everything and loads nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from isoloss import __version__
from isoloss.errors import require_extra
from isoloss.files import read_json, write_json, write_text
from isoloss.report.style import SAVED_DPI, save
from isoloss.store import ResultsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHAPTER = "chapter.json"
NONE = "-"  # in a table, where there is no number
CSS_DPI = 96
PNG = b"\x89PNG\r\n\x1a\n"


class Part(BaseModel):
    """A part of a chapter."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Picture(Part):
    """A figure."""

    file: str  # its PNG, directly beside the chapter; the PDF has the same name
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

    def markdown(self) -> str:
        """Its columns and rows in Markdown."""
        return markdown_table(self.columns, self.rows)


class SceneRun(Part):
    """The points of a run in a scene, one entry for each in every list."""

    name: str
    step: list[int]
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
    lead: str
    missing: list[str]  # what could not be reported, a sentence each
    sections: list[Section]

    @property
    def pictures(self) -> list[Picture]:
        """The figures of all sections."""
        return [picture for section in self.sections for picture in section.pictures]

    def save(self, folder: FilePath) -> None:
        """Write it as `chapter.json`."""
        write_json(folder / CHAPTER, self.model_dump())


def picture(figure: Figure, folder: FilePath, name: str, **words: Any) -> Picture:
    """Save a figure, and say of it on the page what the words are: the fields of `Picture`."""
    save(figure, folder, name)
    return Picture(file=f"{name}.png", **words)


def number(value: Any) -> str:
    """A number for people, to four figures; a dash where there is none."""
    if pd.isna(value):
        return NONE
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{int(value):,}" if isinstance(value, (int, float)) else str(value)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: words in the first column, numbers in the others."""
    lines = [_line(columns), "| --- |" + " ---: |" * (len(columns) - 1), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(entries: Sequence[str]) -> str:
    cells = (text.replace("|", "\\|").replace("\n", "<br>") for text in entries)
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def load_chapter(folder: FilePath) -> Chapter:
    """The chapter in an experiment's folder; a ResultsError where it cannot be read."""
    file = folder / CHAPTER
    try:
        content = read_json(file)
        return Chapter.model_validate(content)
    except (ResultsError, ValidationError) as error:
        raise ResultsError(
            f"{file} cannot be read: it is damaged or from another version; run 'isoloss report "
            f"{folder.name}' again"
        ) from error


def load_image(folder: FilePath, name: str) -> dict[str, Any]:
    """A figure of a chapter for the page, its size in CSS pixels.

    Only files directly beside the chapter are read, whatever it names: a folder that was received
    could name any file of this machine.
    """
    file, again = folder / name, f"run 'isoloss report {folder.name}' again"
    if FilePath(name).name != name or "\\" in name or file.resolve().parent != folder.resolve():
        raise ResultsError(
            f"{folder / CHAPTER} names the figure {name!r}, which must be a file directly beside "
            f"it; {again}"
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ResultsError(f"{file} cannot be read ({error.strerror}); {again}") from error
    if not content.startswith(PNG) or len(content) < 24:
        raise ResultsError(f"{file} is not a PNG; {again}")
    # width and height are in the PNG's first chunk (RFC 2083, 4.1.1)
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    return {
        "data": "data:image/png;base64," + base64.b64encode(content).decode(),
        "width": round(width * CSS_DPI / SAVED_DPI),
        "height": round(height * CSS_DPI / SAVED_DPI),
    }


def write_page(report: FilePath) -> FilePath:
    """Put the chapters of a report folder together as `index.html`.

    Args:
        report: `OUT/report`, with a folder for each experiment.

    Returns:
        The page.

    Raises:
        ResultsError: A chapter or one of its figures cannot be read, or a chapter names a file
            that is not directly beside it.
    """
    jinja2: Any = require_extra("jinja2", "report")
    folders = sorted(file.parent for file in report.glob(f"*/{CHAPTER}"))
    chapters = {folder: load_chapter(folder) for folder in folders}
    loader = jinja2.PackageLoader("isoloss.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    scenes = any(section.scenes for found in chapters.values() for section in found.sections)
    page = environment.get_template("page.html.jinja").render(
        version=__version__,
        chapters=[
            {
                "chapter": chapter,
                "images": {one.file: load_image(folder, one.file) for one in chapter.pictures},
            }
            for folder, chapter in chapters.items()
        ],
        style=loader.get_source(environment, "page.css")[0],
        script=loader.get_source(environment, "page.js")[0],
        plotly=require_extra("plotly.offline", "report").get_plotlyjs() if scenes else "",
    )
    file = report / "index.html"
    write_text(file, page)
    return file
