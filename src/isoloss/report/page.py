"""The report page: one file that holds everything and loads nothing."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path as FilePath

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from isoloss import __version__
from isoloss.files import write_text
from isoloss.report.chapter import Chapter, Scene, load_chapters
from isoloss.report.style import SAVED_DPI

CSS_DPI = 96


@dataclass(frozen=True)
class Image:
    """A PNG for the page.

    Attributes:
        data: As a data URI.
        width: In CSS pixels.
        height: In CSS pixels.
    """

    data: str
    width: int
    height: int


def write_page(report: FilePath) -> FilePath:
    """Put the chapters of a report folder together as `index.html`.

    Args:
        report: `OUT/report`, with a folder for each experiment.

    Returns:
        The page.

    Raises:
        ResultsError: A chapter or one of its figures cannot be read.
    """
    chapters = load_chapters(report)
    scenes: list[Scene] = []
    numbered: dict[tuple[str, int, str], int] = {}
    for chapter in chapters.values():
        for section in chapter.sections:
            for k, scene in enumerate(section.scenes):
                numbered[chapter.experiment, k, section.title] = len(scenes)
                scenes.append(scene)
    loader = PackageLoader("isoloss.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("page.html.jinja").render(
        version=__version__,
        chapters=[
            {"chapter": chapter, "images": _images(folder, chapter)}
            for folder, chapter in chapters.items()
        ],
        scenes=[scene.model_dump() for scene in scenes],
        scene_index=numbered,
        style=_source(loader, "page.css"),
        script=_source(loader, "page.js"),
        plotly=get_plotlyjs() if scenes else "",
    )
    file = report / "index.html"
    write_text(file, page)
    return file


def _images(folder: FilePath, chapter: Chapter) -> dict[str, Image]:
    files = [picture.file for section in chapter.sections for picture in section.pictures]
    return {file: _image(folder / file) for file in files}


def _image(file: FilePath) -> Image:
    content = file.read_bytes()
    # width and height stand in the PNG's first chunk (RFC 2083, 4.1.1)
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    return Image(
        data="data:image/png;base64," + base64.b64encode(content).decode(),
        width=round(width * CSS_DPI / SAVED_DPI),
        height=round(height * CSS_DPI / SAVED_DPI),
    )


def _source(loader: PackageLoader, name: str) -> str:
    return loader.get_source(Environment(autoescape=True), name)[0]
