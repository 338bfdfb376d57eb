"""What the report page says of one experiment, as data beside its figures: `chapter.json`.

Pages are put together from these files, so that each experiment can be reported by itself and the
page holds all that were.
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from isoloss.files import read_json, write_json
from isoloss.store import ResultsError

NAME = "chapter.json"


class Part(BaseModel):
    """A part of a chapter."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Picture(Part):
    """A figure.

    Attributes:
        file: Name of its PNG, beside the chapter; the PDF has the same name.
        title: Its heading.
        alt: What it shows, for those who do not see it.
        caption: Below it.
        folded: Whether it is shown on demand only.
    """

    file: str
    title: str
    alt: str
    caption: str = ""
    folded: bool = False


class Table(Part):
    """A table, its entries as they are to be read.

    Attributes:
        title: Its heading.
        columns: Headings of the columns.
        rows: Entries, a list per row; the first is the row's heading.
        caption: Below it.
        words: Whether the entries are words rather than numbers.
        folded: Whether it is shown on demand only.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    words: bool = False
    folded: bool = False


class SceneRun(Part):
    """The kept points of a run in a scene, one entry per point in every list.

    Attributes:
        name: For example `run 0`.
        step: Step of the walk.
        values: What was measured, by its label; None where it was not.
        scaled: Scores in the components of the scaled PCA, a list per component.
        unscaled: Scores in the components of the unscaled one.
    """

    name: str
    step: list[int]
    values: dict[str, list[float | None]]
    scaled: list[list[float]]
    unscaled: list[list[float]]


class SceneMark(Part):
    """A single point in a scene.

    Attributes:
        name: Its label.
        scaled: Scores in the scaled PCA.
        unscaled: Scores in the unscaled one.
    """

    name: str
    scaled: list[float]
    unscaled: list[float]


class Scene(Part):
    """The PCA of the walks of a method, to be turned.

    Attributes:
        title: Its heading.
        alt: What it shows.
        captions: Below it, by the scaling.
        ratios: Explained share of the variance of each component, by the scaling.
        runs: The walks.
        marks: Further points.
    """

    title: str
    alt: str
    captions: dict[str, str]
    ratios: dict[str, list[float]]
    runs: list[SceneRun]
    marks: list[SceneMark]


class Section(Part):
    """A part with a heading: text, then tables, scenes and pictures.

    Attributes:
        title: Its heading.
        text: Paragraphs.
        tables: Tables.
        scenes: Interactive scenes.
        pictures: Figures.
    """

    title: str
    text: list[str] = []
    tables: list[Table] = []
    scenes: list[Scene] = []
    pictures: list[Picture] = []


class Chapter(Part):
    """Everything the page says of one experiment.

    Attributes:
        format_version: Of this file.
        experiment: Its name.
        lead: What it is, in a sentence.
        missing: What could not be reported, a sentence each.
        sections: The rest.
    """

    format_version: Literal[1, 2] = 2
    experiment: str
    lead: str
    missing: list[str]
    sections: list[Section]

    def save(self, folder: FilePath) -> None:
        """Write it as `chapter.json`."""
        write_json(folder / NAME, self.model_dump(exclude={"format_version"}))


def load_chapters(report: FilePath) -> dict[FilePath, Chapter]:
    """The chapters below a report folder.

    Args:
        report: `OUT/report`.

    Returns:
        Each chapter by its folder, in alphabetical order.

    Raises:
        ResultsError: One cannot be read.
    """
    chapters: dict[FilePath, Chapter] = {}
    for file in sorted(report.glob(f"*/{NAME}")):
        try:
            chapters[file.parent] = Chapter.model_validate(read_json(file))
        except (ResultsError, ValidationError) as error:
            raise ResultsError(
                f"{file} cannot be read: it is damaged or from another version; run 'isoloss "
                f"report {file.parent.name}' again"
            ) from error
    return chapters
