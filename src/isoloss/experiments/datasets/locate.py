"""Where official files are looked for, and whether what lies there is what it should be."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

from isoloss.experiments.datasets.errors import DataError
from isoloss.experiments.datasets.files import DataFile, forms


def cache_folder() -> Path:
    """The folder of this user that downloads are placed in.

    Returns:
        Its path; it need not exist.
    """
    return platformdirs.user_cache_path("isoloss") / "data"


def folders() -> tuple[Path, ...]:
    """The folders that files are looked for in, in that order.

    Returns:
        `$ISOLOSS_DATA` where that is set, then the cache.

    Raises:
        DataError: `$ISOLOSS_DATA` starts with the home of a user that there is not.
    """
    own = os.environ.get("ISOLOSS_DATA", "")
    if not own:
        return (cache_folder(),)
    try:
        return (Path(own).expanduser(), cache_folder())
    except RuntimeError as error:
        raise DataError(f"ISOLOSS_DATA={own!r} names no user's home; set it to a folder") from error


def find(file: DataFile) -> Path | None:
    """The first place that has a file.

    Args:
        file: Which.

    Returns:
        Its path, unchecked; None where no folder has it.

    Raises:
        DataError: A folder may not be looked into.
    """
    for folder in folders():
        place = folder / file.path
        try:
            if place.is_file():
                return place
        except OSError as error:
            raise _unreadable(place, error) from error
    return None


def complete_form(name: str) -> tuple[DataFile, ...] | None:
    """The first of a data set's forms whose files all lie somewhere.

    Args:
        name: The data set.

    Returns:
        The form's files; None where every form lacks one.

    Raises:
        InputError: There is no data set of that name.
        DataError: A folder may not be looked into.
    """
    complete = (form for form in forms(name) if all(find(file) for file in form))
    return next(complete, None)


def at_hand(name: str) -> bool:
    """Whether all files of a data set are there; none is read, so that this takes no time.

    Args:
        name: The data set.

    Returns:
        True if `load` needs no download; always for `iris`, which comes with scikit-learn.

    Raises:
        InputError: There is no data set of that name.
        DataError: A folder may not be looked into.
    """
    return complete_form(name) is not None


def damage(path: Path, file: DataFile) -> str | None:
    """What is wrong with a file, if anything.

    Args:
        path: Where it lies.
        file: What should lie there.

    Returns:
        None, or the difference, as the end of a sentence.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        if wrong := _wrong_size(path.stat().st_size, file):
            return wrong
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _wrong_hash(found, file)


def _wrong_size(size: int, file: DataFile) -> str | None:
    return None if size == file.size else f"it has {size} bytes instead of {file.size}"


def _wrong_hash(found: str, file: DataFile) -> str | None:
    return None if found == file.sha256 else f"its SHA-256 is {found} instead of {file.sha256}"


def check(file: DataFile) -> Path:
    """Find a file and make sure that it is the official one.

    Args:
        file: Which.

    Returns:
        Where it lies.

    Raises:
        DataError: It is missing, damaged or unreadable.
    """
    path = _found(file)
    if wrong := damage(path, file):
        raise damaged(path, file, wrong)
    return path


def read(file: DataFile) -> tuple[bytes, Path]:
    """All of a file; the bytes that are returned are those whose hash was compared.

    Args:
        file: Which.

    Returns:
        Its bytes, and where it lies.

    Raises:
        DataError: It is missing, damaged or unreadable.
    """
    path = _found(file)
    try:
        if wrong := _wrong_size(path.stat().st_size, file):
            raise damaged(path, file, wrong)
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    if wrong := _wrong_hash(hashlib.sha256(data).hexdigest(), file):
        raise damaged(path, file, wrong)
    return data, path


def _found(file: DataFile) -> Path:
    path = find(file)
    if path is None:
        raise missing(file)
    return path


def looked_in() -> str:
    """The folders that files are looked for in, as words.

    Returns:
        For example `/home/ann/data or /home/ann/.cache/isoloss/data`.
    """
    return " or ".join(str(folder) for folder in folders())


def missing(file: DataFile) -> DataError:
    """The error for a file that no folder has.

    Args:
        file: Which.

    Returns:
        The error, to be raised by the caller.
    """
    return DataError(
        f"{file.path} is not in {looked_in()}; place it there, "
        f"or run `isoloss data fetch {file.dataset}`"
    )


def damaged(path: Path, file: DataFile, wrong: str) -> DataError:
    """The error for a file that is not the official one.

    Args:
        path: Where it lies.
        file: What should lie there.
        wrong: The difference.

    Returns:
        The error, to be raised by the caller.
    """
    return DataError(
        f"{path} is not the official file: {wrong}; delete it, "
        f"then run `isoloss data fetch {file.dataset}`"
    )


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror}; check its permissions")
