"""What the disk and the system allow, and what they refuse: a sentence with its remedy."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Generator
from pathlib import Path

from safetensors import SafetensorError

from isoloss.errors import InputError, IsolossError

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, the system has too many files open",
    errno.EACCES: "get the permission to write there",
    errno.EPERM: "get the permission to write there",
    errno.EROFS: "make the folder writable",
}


class StorageError(IsolossError):
    """The disk, or a limit of the system, does not let a file be written or read now."""


def sentence_of(error: Exception) -> str | None:
    """What the system refused and what to do about it; None for errors of other kinds."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError):
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else None
    if number is None:
        return None
    remedy = _REMEDIES.get(number, "see to that")
    return (
        f"{os.strerror(number)}; {remedy} and call the same command again: all that was written "
        f"before is still valid"
    )


@contextlib.contextmanager
def writing(file: Path) -> Generator[None]:
    """Turn what the system refuses into a sentence.

    Args:
        file: What is being written, for the sentence.

    Yields:
        Nothing.

    Raises:
        StorageError: It could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {file}: {sentence_of(error) or error}") from error


def sync(path: Path) -> None:
    """Make it last what a file contains, or which files a folder holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(*files: Path) -> None:
    """Delete files that are not needed any more, those that are there, and make that last."""
    for file in files:
        with writing(file):
            file.unlink(missing_ok=True)
    for folder in {file.parent for file in files}:
        if folder.exists():
            sync(folder)


def check_out_folder(folder: Path) -> None:
    """Insist that results can be written below a folder, without writing anything.

    Args:
        folder: The folder, which need not exist.

    Raises:
        InputError: It is a file, lies below one, or may not be written to.
    """
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"--out {folder} is not possible: {nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"--out {folder} is not possible: {nearest} may not be written to; name another folder"
        )
