"""Results checked: files against their checksums, and their numbers found again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import groupby, zip_longest
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch

from isoloss.disk import (
    DamagedError,
    ResultsError,
    as_folder,
    read_bytes,
    refuse_links,
    refuse_links_in,
)
from isoloss.errors import InputError, IsolossError, said
from isoloss.explore.front import Front
from isoloss.files import OUTCOME, Ending, read_ending
from isoloss.path import POINTS, Path
from isoloss.report.chapter import FILES, read_runs, report_tables, runs_section
from isoloss.report.drawn import Drawn
from isoloss.report.fronts import shown_fronts
from isoloss.report.page import (
    CHAPTER,
    PAGE,
    Table,
    load_chapter,
    load_image,
    page_text,
    plotly_js,
    unpacked,
)
from isoloss.report.tables import Runs, equivalent_penalty
from isoloss.report.verify.checks import NOT_DONE as NOT_DONE
from isoloss.report.verify.checks import Check, facts
from isoloss.report.verify.decay import decay_checks
from isoloss.report.verify.fronts import front_checks
from isoloss.report.verify.walks import walk_checks
from isoloss.report.walks import walks_table
from isoloss.store import Decay, Results, load_decay
from isoloss.store.folder import (
    EPOCHS,
    FRONT,
    LEFT_OUT,
    MEMBERS,
    NOT_FINISHED,
    REPLACED,
    REPORT,
    STRAY,
    copies,
    misplaced,
    run_folder,
    run_index,
    signs_of,
)

KINDS = ("traverse", "decay", "equivalent", "after-decay", "front")


def verify(folder: str | FilePath) -> list[Check]:
    """Check everything below a results folder, or a folder in it down to that of one run."""
    top = as_folder(folder)
    runs = [top] if run_index(top.name) is not None else list(_runs_below(top))
    if not runs:
        what = "holds no run" if top.exists() else "does not exist"
        raise InputError(f"{top} {what}; name a folder that was given to --out, or one in it")
    checks: list[Check] = []
    for _, group in groupby(runs, lambda run: run.parent):
        signs: dict[str, Mapping[str, Any]] = {}
        for run in group:
            name = str(run.relative_to(top)) if run != top else run.name
            with np.errstate(all="ignore"):  # of numbers that are wrong
                checks += _checks(run, name, top, signs)
        where = checks[-1].run.rpartition("/")[0]
        for name, why in copies(signs).items():
            checks += facts(f"{where}/{name}".lstrip("/"), "among the others", [why])
    checks.sort(key=lambda check: check.run)
    return [*checks, *check_reports(top)]


def _runs_below(top: FilePath) -> Iterator[FilePath]:
    """Folders with names such as those of runs, not in one another, and whatever is a link."""
    for place, folders, files in os.walk(top):
        links = [one for one in (*folders, *files) if FilePath(place, one).is_symlink()]
        folders[:] = sorted({*folders} - {"quarantine", REPLACED, *links})
        named = [one for one in folders if one.startswith("run-")]
        folders[:] = [one for one in folders if one not in named]
        if FilePath(place) == top:
            folders[:] = [one for one in folders if one != REPORT]
        yield from (FilePath(place, one) for one in sorted([*named, *links]))


def check_reports(top: FilePath) -> Iterator[Check]:
    """Make what reports hold again from the runs: their tables, and the page of their chapters."""
    page, legible = top / REPORT / PAGE, True
    folders = [folder for folder in sorted(page.parent.glob("*")) if folder.is_dir()]
    for file in [*folders, *([page] if page.exists() else [])]:
        name = str(file.relative_to(top))
        try:
            refuse_links(top, file)
            refuse_links_in(file)
            if file != page:
                checks = list(_check_report(file, name))
                yield from checks
                legible &= not any(one.problem for one in checks if one.what == CHAPTER)
            elif legible:  # wrong chapters make no page
                yield from _check_page(file, name)
        except Exception as error:
            legible = False
            yield Check(name, "tables", "", "", f"cannot be made again: {_told(error)}")


def _check_report(folder: FilePath, name: str) -> Iterator[Check]:
    results = Drawn(folder.parent.parent)
    again = f"run 'isoloss report {folder.name}' again"
    there = [file for file in FILES if (folder / file).exists()]
    chapter = (folder / CHAPTER).exists()
    if damage := _figures(folder) if chapter else "":
        yield from facts(name, CHAPTER, [damage])
    if not there and (damage or not chapter):
        return
    runs = read_runs(results, folder.name)
    shown, made, sentences = report_tables(runs)
    for file in FILES:
        if file in there or file in made:
            wrong = _other_table(folder / file, made.get(file))
            found = "another" if wrong else "the same"
            yield Check(name, file, found, "the same", f"{wrong}; {again}" if wrong else "")
    if chapter and not damage:
        other = _numbers(folder, results, runs, shown, sentences)
        yield from facts(name, CHAPTER, list(other), "the same")


def _figures(folder: FilePath) -> str:
    """What is wrong with a chapter as a file, or with its figures; empty where they are whole."""
    try:
        for picture in load_chapter(folder).pictures:
            load_image(folder, picture)
    except ResultsError as error:
        return str(error)
    return ""


def _numbers(
    folder: FilePath, results: Results, runs: Runs, shown: list[Table], found: list[str]
) -> Iterator[str]:
    """Where a chapter is not that of these runs."""
    chapter, again = load_chapter(folder), f"run 'isoloss report {folder.name}' again"
    if chapter.found != found:
        yield f"{folder / CHAPTER} says that something else was found than in these runs; {again}"
    first = [walks_table(runs)] if runs.methods else []
    last = runs_section(results, runs).tables if runs.methods else []
    fronts = [shown_fronts(runs.fronts)] if runs.fronts else []
    tables = [table for section in chapter.sections for table in section.tables]
    pairs = zip_longest(tables, [*first, *shown, *fronts, *last])
    if other := next((one or made for one, made in pairs if one != made), None):
        yield f"{folder / CHAPTER} holds other numbers of '{other.title}' than these runs; {again}"


def _check_page(page: FilePath, name: str) -> Iterator[Check]:
    """Compare the page with that of its chapters, and what draws in it with what is installed."""
    mark = "\0"
    before, drawn, after = page_text(page.parent, mark).partition(mark)
    text = read_bytes(page).decode(errors="replace")
    drawing = text.removeprefix(before).removesuffix(after)
    if text != before + (drawing if drawn else "") + after:
        yield from facts(name, "page", [f"{page} is not the page of its chapters"], "the same")
    elif drawn and unpacked(drawing, len(here := plotly_js())) != here:  # another, or changed
        yield Check(name, "page", "the same, but for another plotly.js", "")
    else:
        yield from facts(name, "page", [], "the same")


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, IsolossError) else said(error)


def _other_table(file: FilePath, made: str | None) -> str:
    """How a table differs from the same made again; empty where it does not."""
    if made is None:
        return f"{file} is a table of runs that are not here"
    if not file.exists():
        return f"{file} is missing"
    try:
        lines = read_bytes(file).decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return f"{file} is not text"
    for k, (line, right) in enumerate(zip_longest(lines, made.splitlines(keepends=True)), 1):
        if line != right:
            return f"{file} is not the table of these runs: line {k} differs"
    return ""


def _checks(
    folder: FilePath, name: str, top: FilePath, signs: dict[str, Mapping[str, Any]]
) -> Iterator[Check]:
    """All checks of a run; whatever goes wrong in one is wrong with this run alone."""
    what = "files"
    try:
        if folder != top:
            refuse_links(top, folder)
        if run_index(folder.name) is None:
            yield Check(name, what, f"{LEFT_OUT}: {STRAY}", "")
            return
        refuse_links_in(folder)
        if not (folder / OUTCOME).exists():
            yield Check(name, what, NOT_FINISHED, "")
            return
        ending = read_ending(folder)
        run = _load(folder, ending)
        yield Check(name, what, f"{len(ending.stamps)} whole", "")
        what = "computed again"
        if not isinstance(ending.about.get("config"), dict):
            raise DamagedError(f"{folder} is damaged: it does not say of which settings it is")
        signs[folder.name] = signs_of(ending.about["config"], ending.stamps[POINTS].sha256)
        yield from facts(name, "its folder", list(_place(folder, run, ending)))
        if isinstance(run, Front):
            yield from front_checks(run, ending.about["config"], name)
        else:
            yield from decay_checks(run, name) if isinstance(run, Decay) else walk_checks(run, name)
    except ResultsError as error:
        yield Check(name, what, "damaged or failed", "", str(error))
    except Exception as error:
        yield Check(name, what, "", "", f"cannot be checked: {_told(error)}")


def _load(folder: FilePath, ending: Ending) -> Path | Decay | Front:
    if {MEMBERS, EPOCHS} & {*ending.stamps}:
        return load_decay(folder)
    return Front.load(folder) if FRONT in ending.stamps else Path.load(folder)


def _place(folder: FilePath, run: Path | Decay | Front, ending: Ending) -> Iterator[str]:
    """What does not fit with where a run is and with the runs that it came from."""
    config, parts = ending.about["config"], folder.absolute().parts
    by = run.method if isinstance(run, Path) else None
    at = -3 if len(parts) > 3 and parts[-2] == "decay" else -4
    if len(parts) < 5 or parts[at + 1] not in KINDS:
        return
    kind: Any = parts[at + 1]
    method = parts[-2] if at == -4 else None
    index, out = run_index(folder.name) or 0, FilePath(*parts[: at - 0])
    made = {"decay": Decay, "equivalent": Decay, "front": Front}.get(kind, Path)
    if type(run) is not made:
        yield f"it is no run of the kind {kind}"
    elif why := misplaced(config, parts[at], kind, by, method):
        yield why
    elif isinstance(run, Front) and run.regularizer != method:
        yield f"its regularizer is {run.regularizer}, which is not that of its folder"
    elif kind == "after-decay" and isinstance(run, Path):
        before = run_folder(out, parts[at], None, index, "decay")
        if (before / OUTCOME).exists():
            trained = load_decay(before)
            starts = [f"weight decay, penalty {p:g}" for p in trained.members["penalty"]]
            ends = trained.ends()[[one == config.get("start") for one in starts]]
            if not any(torch.equal(end.to(run.points), run.points[0]) for end in ends):
                yield f"it does not start from the network of {before} that its settings name"
    elif kind == "equivalent":
        before = run_folder(out, parts[at], method, index)
        if (before / OUTCOME).exists():
            penalty = equivalent_penalty(Path.load(before))
            if config.get("penalties") != [penalty]:
                yield f"its penalty is not {penalty:g}, at which {before} ended"
