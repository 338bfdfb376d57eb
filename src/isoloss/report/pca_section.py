"""The report's PCA of the walks: figures, and a scene to be turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

import numpy as np
from torch import Tensor

from isoloss.errors import InputError
from isoloss.path import Path
from isoloss.report.chapter import Picture, Scene, SceneMark, SceneRun, Section
from isoloss.report.components import PCA, Array, pca
from isoloss.report.pca import caption, explained_variance, mean_end, pca_views, percent
from isoloss.report.style import save

COMPONENTS = 6
"""Shown in scenes."""

TEXT = [
    "Every kept point of every run, seen along the directions in which they differ most. A "
    "projection can mislead: how much of each walk's length a view holds is said below it.",
    "Runs start from different weights, and the order of hidden units is arbitrary: it is not "
    "matched between runs here, as it is not in the paper. Distances between runs, and the mean of "
    "their end points, therefore say little; the shape of each walk is what can be read.",
]


def pca_section(
    methods: Mapping[str, Sequence[Path]],
    folder: FilePath,
    *,
    title: str,
    others: Mapping[str, Tensor] | None = None,
) -> tuple[Section | None, list[FilePath], list[str]]:
    """Compute the PCA of each method's walks, write its figures, and make the section.

    Args:
        methods: The walks of each method, by its name.
        folder: For the figures.
        title: Of the figures.
        others: Further points to mark, shape (parameters,), by their label.

    Returns:
        The section, or None where there is nothing to show; the files written; and why a method is
        not in it, a sentence each.
    """
    scenes: list[Scene] = []
    pictures: list[Picture] = []
    files: list[FilePath] = []
    missing: list[str] = []
    for name, paths in methods.items():
        try:
            scene, shown, written = _of_method(
                name, paths, folder, f"{title}, {name}", others or {}
            )
        except InputError as error:
            missing.append(f"principal components of {name}: {error}")
            continue
        scenes.append(scene)
        pictures += shown
        files += written
    section = Section(title="Principal components", text=TEXT, scenes=scenes, pictures=pictures)
    return (section if scenes else None), files, missing


def _of_method(
    method: str,
    paths: Sequence[Path],
    folder: FilePath,
    title: str,
    others: Mapping[str, Tensor],
) -> tuple[Scene, list[Picture], list[FilePath]]:
    paths = [path for path in paths if len(path.points)]
    both = {
        name: pca([path.points for path in paths], scaled=name == "scaled")
        for name in ("scaled", "unscaled")
    }
    ends = {
        name: {label: found.transform(point[None])[0] for label, point in others.items()}
        for name, found in both.items()
    }
    files: list[FilePath] = []
    pictures: list[Picture] = []
    for name, found in both.items():
        file = f"pca-{method}" + ("" if name == "scaled" else "-unscaled")
        files += save(pca_views(found, ends=ends[name], title=title), folder, file)
        words = "scaled coordinates" if name == "scaled" else "coordinates as they are"
        pictures.append(
            Picture(
                file=f"{file}.png",
                title=f"Walks by {method}, {words}",
                alt=f"3-D views of components 1 to 3 and 4 to 6 of the walks by {method}, "
                f"{words}. {_told(found)}",
                folded=name == "unscaled",
            )
        )
    file = f"variance-{method}"
    files += save(explained_variance(*both.values(), title=title), folder, file)
    pictures.append(
        Picture(
            file=f"{file}.png",
            title=f"Walks by {method}, explained variance",
            alt=" ".join(f"{_told(found)}" for found in both.values()),
        )
    )
    scene = Scene(
        title=f"Walks by {method}, to be turned",
        alt=f"The walks by {method} in three components at a time, colored from start to end. "
        f"{_told(both['scaled'])} The slider and the table below it give the values along the way.",
        captions={name: f"{caption(found)} {HOW_TO}" for name, found in both.items()},
        ratios={name: _rounded(found.explained_variance_ratio) for name, found in both.items()},
        runs=[_run(k, path, both) for k, path in enumerate(paths)],
        marks=_marks(
            both, ends, [f"mean of run {_number(path, k)}" for k, path in enumerate(paths)]
        ),
    )
    return scene, pictures, files


HOW_TO = "Drag to turn; point at a walk to see its step, losses and R."


def _run(k: int, path: Path, both: Mapping[str, PCA]) -> SceneRun:
    rows = path.steps.set_index("step").reindex(path.point_steps)
    labels = {
        "loss": "loss",
        "regularizer": "R",
        "test_loss": "test loss",
        "test_metric": "test metric",
    }
    values = {label: _values(rows[column]) for column, label in labels.items() if column in rows}
    return SceneRun(
        name=f"run {_number(path, k)}",
        step=[int(step) for step in path.point_steps],
        values=values,
        scaled=_columns(both["scaled"].runs[k]),
        unscaled=_columns(both["unscaled"].runs[k]),
    )


def _marks(
    both: Mapping[str, PCA], ends: Mapping[str, Mapping[str, Array]], names: Sequence[str]
) -> list[SceneMark]:
    found = {
        name: {
            "mean end of the walks": mean_end(pca),
            **ends[name],
            **{mean: run.mean(axis=0) for mean, run in zip(names, pca.runs, strict=True)},
        }
        for name, pca in both.items()
    }
    return [
        SceneMark(
            name=label,
            scaled=_rounded(found["scaled"][label][:COMPONENTS]),
            unscaled=_rounded(found["unscaled"][label][:COMPONENTS]),
        )
        for label in found["scaled"]
    ]


def _number(path: Path, k: int) -> int:
    """A run's number, from its folder's name where it has one."""
    last = str(path.metadata.get("folder", "")).rpartition("run-")[2]
    return int(last) if last.isdecimal() else k


def _columns(scores: Array) -> list[list[float]]:
    return [_rounded(column) for column in scores.T[:COMPONENTS]]


def _values(column: object) -> list[float | None]:
    values = np.asarray(column, dtype=np.float64)
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _rounded(values: Array) -> list[float]:
    """To six figures: finer is not seen, and the page would only be larger."""
    return [float(f"{value:.6g}") for value in values]


def _told(found: PCA) -> str:
    ratio = found.explained_variance_ratio
    what, six = "Scaled" if found.scaled else "Unscaled", ratio[:COMPONENTS]
    return (
        f"{what}, the first three components hold {percent(float(ratio[:3].sum()))} of the "
        f"variance, the first {len(six)} {percent(float(six.sum()))}."
    )
