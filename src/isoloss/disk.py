"""Results on the disk: opened, made, moved and deleted here alone, never through a link.

A folder received from somebody else may hold links: what is read, written or deleted through them
is outside of it. So none is followed below the folder that the user names, which may be one itself.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from safetensors import SafetensorError

from isoloss.errors import InputError, IsolossError, one_line, shown

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, since too many files are open",
    errno.EACCES: "change the permissions",
    errno.EPERM: "change the permissions",
    errno.EROFS: "make the folder writable",
}


class ResultsError(IsolossError):
    """Files of a run cannot be read; the text names the file and what is wrong with it."""


class DamagedError(ResultsError):
    """A file is missing, torn or changed, so that nothing in it may be believed."""


class StorageError(IsolossError):
    """The disk, or a limit of the system, does not let a file be written or read now."""


@dataclass(frozen=True)
class Stamp:
    """What tells a file's content: the hexadecimal SHA-256 of its bytes, and their number."""

    sha256: str
    bytes: int

    @staticmethod
    def of(content: bytes | BinaryIO | Path) -> Stamp:
        """The stamp of bytes, of a file that was opened, or of one as it is now."""
        if isinstance(content, bytes):
            return Stamp(hashlib.sha256(content).hexdigest(), len(content))
        if isinstance(content, Path):
            with open_plain(content, "rb") as opened:
                return Stamp.of(opened)
        digest = hashlib.file_digest(cast("Any", content), "sha256").hexdigest()
        return Stamp(digest, content.tell())

    def check(self, file: Path, content: bytes | BinaryIO | None = None) -> None:
        """Insist that a file, which may have been read or opened, is the one stamped."""
        with reading(file):
            found = Stamp.of(file if content is None else content)
        if found.bytes != self.bytes:
            raise DamagedError(f"{file} has {found.bytes} bytes instead of {self.bytes}")
        if found != self:
            raise DamagedError(f"{file} was changed after it was written: its checksum differs")


# ---------------------------------------------------------------- links


def linked(file: Path) -> ResultsError:
    """An error, to be raised, for a link where none is followed."""
    return ResultsError(
        f"{file} is a symbolic link, and none is followed inside results, since it could lead "
        f"anywhere; put a copy of what it stands for in its place, or delete it"
    )


def refuse_links(root: Path, folder: Path) -> None:
    """Insist that no link leads from a root, which may be one, to a file or folder below it."""
    for part in (*reversed(folder.parents), folder):
        if part.is_relative_to(root) and part != root and part.is_symlink():
            raise linked(part)


def refuse_links_in(folder: Path) -> None:
    """Insist that a folder, which may be a link, holds none at whatever depth."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if Path(place, name).is_symlink():
                raise linked(Path(place, name))


def open_plain(file: Path, mode: str) -> BinaryIO:
    """Open a regular file, in binary: no link, and no pipe or device that could be waited for."""
    aside = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if file.is_symlink():  # where the system knows no such flags
        raise linked(file)

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | aside, 0o666)  # less what the user's mask takes away

    opened = open(file, mode, opener=opener)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise DamagedError(f"{file} is not a regular file")
    return cast("BinaryIO", opened)


def read_bytes(file: Path) -> bytes:
    """The content of a file; errors are ours."""
    with reading(file), open_plain(file, "rb") as opened:
        return opened.read()


# ---------------------------------------------------------------- writing


def atomically(file: Path, write: Callable[[Path], object]) -> Stamp:
    """Write beside the place, flush, rename, flush the folder; the file's stamp."""
    part = file.with_name(f".{file.name}.part")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(part):  # of a process that was killed, or a link that leads elsewhere
            part.unlink()
        try:
            with open_plain(part, "xb") as opened:
                mode = os.fstat(opened.fileno()).st_mode
            write(part)
            part.chmod(mode)  # safetensors makes files that only their owner may read
            stamp = Stamp.of(part)
            sync(part)
            os.replace(part, file)  # noqa: PTH105
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        sync(file.parent)
    return stamp


# ---------------------------------------------------------------- what the system refuses


@contextlib.contextmanager
def reading(file: Path) -> Generator[None]:
    """Turn errors of reading into ours: what is wrong with the file, or what the system refuses."""
    try:
        yield
    except (MemoryError, IsolossError):
        raise
    except FileNotFoundError as error:
        raise DamagedError(f"{file} is missing") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise DamagedError(f"{file} is not a file in a folder") from error
    except OSError as error:
        if error.errno is None:  # Parquet's way to say that the content is wrong
            raise DamagedError(f"{file} is damaged: {error}") from error
        raise StorageError(f"cannot read {file}: {sentence_of(error)}") from error
    except Exception as error:
        raise DamagedError(f"{file} is damaged: {type(error).__name__}: {error}") from error


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
    """Turn what the system refuses while a file is written into a StorageError."""
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


def remove_folder(folder: Path) -> None:
    """Delete a folder that is not needed any more, if it is there, and make that last."""
    if folder.exists():
        refuse_links(folder.parent, folder)
        with writing(folder):
            shutil.rmtree(folder)
            sync(folder.parent)


def move_aside(what: Path, folder: Path, *, copy: bool = False) -> Path:
    """Move a file or folder into another, under a name with the time that is not taken."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    refuse_links(folder.parent, folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        target, count = folder / f"{what.name}-{stamp}", 1
        while target.exists():
            count += 1
            target = folder / f"{what.name}-{stamp}-{count}"
        (shutil.copyfile if copy else os.replace)(what, target)
        sync(folder)
        sync(what.parent)
    return target


def quarantine(damaged: Path, folder: Path, *, copy: bool = False) -> None:
    """Move what is damaged, if it is there, into the `quarantine` of a run folder."""
    if damaged.exists():
        move_aside(damaged, folder / "quarantine", copy=copy)


def as_folder(folder: object) -> Path:
    """A user's path of a folder, with `~` expanded; InputError where it is none."""
    if not isinstance(folder, str | os.PathLike) or not str(folder):
        raise InputError(f"folder must be a path such as 'results/walk', got {shown(folder)}")
    try:
        path = Path(cast("str | os.PathLike[str]", folder)).expanduser()
        os.fsencode(path.absolute())
        if not str(path).isprintable():
            raise ValueError("it holds characters that cannot be printed")
        file = path.exists() and not path.is_dir()
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # a home that is nobody's, ...
        why = error.strerror if isinstance(error, OSError) else one_line(error)
        raise InputError(f"folder cannot be {shown(folder)} ({why}); give another path") from error
    if file:
        raise InputError(f"folder must be the path of a folder, got the file {path}")
    return path
