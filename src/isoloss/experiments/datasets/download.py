"""Fetching the official files, and reporting which are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pooch
from filelock import FileLock, Timeout

from isoloss.experiments.datasets.errors import DataError
from isoloss.experiments.datasets.files import DataFile, forms
from isoloss.experiments.datasets.locate import (
    cache_folder,
    complete_form,
    damage,
    damaged,
    find,
    looked_in,
)
from isoloss.experiments.datasets.resume import DownloadFailed, ResumingDownloader

TIMEOUT = 30.0
"""Seconds for which a server may be silent."""

_LONGEST_WAIT = 3600.0


@dataclass(frozen=True)
class FileReport:
    """The state of one official file.

    Attributes:
        file: Which.
        state: Whether it is there and what it should be.
        where: Where it lies; None where it is missing.
        size: In bytes, as it lies there; None where it is missing.
        problem: What is damaged; empty otherwise.
    """

    file: DataFile
    state: Literal["present", "missing", "damaged"]
    where: Path | None = None
    size: int | None = None
    problem: str = ""


def verify(name: str) -> list[FileReport]:
    """Look for a data set's files and compare each with its published hash; change nothing.

    Args:
        name: The data set.

    Returns:
        A report per file, of the form (folder of batches, archive) that `load` would read or that
        is nearest to complete; none for `iris`, which comes with scikit-learn.

    Raises:
        InputError: There is no data set of that name.
        DataError: A file cannot be read.
    """
    form = complete_form(name) or max(reversed(forms(name)), key=_found)
    return [_report(file) for file in form]


def fetch(name: str) -> list[FileReport]:
    """Make sure that all files of a data set are at hand, downloading to the cache what is not.

    Progress is shown on standard error. A download that is interrupted goes on where it stopped
    when this is called again. A damaged file in the cache is replaced; elsewhere files are the
    user's and are never touched.

    Args:
        name: The data set.

    Returns:
        A report per file, all present.

    Raises:
        InputError: There is no data set of that name.
        DataError: A file could not be downloaded or written, or a file outside the cache is
            damaged; the text says what to do.
    """
    return [_fetched(file) for file in complete_form(name) or forms(name)[-1]]


def _fetched(file: DataFile) -> FileReport:
    before = _report(file)
    if before.state == "present":
        return before
    target = cache_folder() / file.path
    if before.where is not None and not (file.urls and before.where == target):
        raise damaged(before.where, file, before.problem)
    _download(file)
    return FileReport(file, "present", target, file.size)  # pooch has compared its hash


def _found(form: tuple[DataFile, ...]) -> int:
    return sum(find(file) is not None for file in form)


def _report(file: DataFile) -> FileReport:
    path = find(file)
    if path is None:
        return FileReport(file, "missing")
    wrong = damage(path, file)
    state = "damaged" if wrong else "present"
    return FileReport(file, state, path, path.stat().st_size, wrong or "")


def _download(file: DataFile) -> None:
    target = cache_folder() / file.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Runs started side by side all want the same file; one downloads and the others wait.
        with FileLock(f"{target}.lock", timeout=_LONGEST_WAIT):
            _try_each(file, target)
    except Timeout as error:
        raise DataError(
            f"{file.path} is being downloaded by another process that has not finished in an "
            f"hour; end that process, or delete {target}.lock"
        ) from error
    except OSError as error:
        raise DataError(
            f"{file.path} cannot be written to {target.parent}: {error.strerror or error}; make "
            "room there, or place the file in a folder of your own and set ISOLOSS_DATA to it"
        ) from error


def _try_each(file: DataFile, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    failures: list[str] = []
    for url in file.urls:
        # A part may be of something else; if continuing it gives a wrong hash, begin anew once.
        for _ in range(2 if part.exists() else 1):
            try:
                pooch.retrieve(
                    url,
                    known_hash=f"sha256:{file.sha256}",
                    fname=target.name,
                    path=target.parent,
                    # pooch's protocol for this misnames the arguments that it passes.
                    downloader=cast(Any, ResumingDownloader(part, file.size, TIMEOUT)),
                )
            except DownloadFailed as error:
                failures.append(f"{url} ({error})")
                break
            except ValueError:  # pooch's word for a wrong hash; it has removed the file
                failures.append(f"{url} (its SHA-256 differs from the published one)")
            else:
                return
    kept = f" ({part.stat().st_size} of {file.size} bytes are kept)" if part.exists() else ""
    raise DataError(
        f"{file.path} is not in {looked_in()} and could not be downloaded from "
        f"{' or '.join(failures)}; connect to the internet and try again{kept}, or place the file "
        "there yourself"
    )
