"""Files that are there whole or not at all, and are believed only where they are whole.

The SHA-256 of JSON is in the file itself, that of tables and tensors in the `outcome.json` that is
written after them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from isoloss import __version__
from isoloss.errors import InputError, IsolossError, one_line, shown

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 3
"""Of everything that is written; docs/formats.md describes each file."""
OUTCOME = "outcome.json"
FAILED = "failed"
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
    def of(content: bytes | Path) -> Stamp:
        """The stamp of bytes, or of a file as it is now."""
        if isinstance(content, bytes):
            return Stamp(hashlib.sha256(content).hexdigest(), len(content))
        with content.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            return Stamp(digest, opened.tell())

    def check(self, file: Path, content: bytes | None = None) -> None:
        """Insist that a file, of which the content may have been read, is the one stamped."""
        with reading(file):
            found = Stamp.of(file if content is None else content)
        if found.bytes != self.bytes:
            raise DamagedError(f"{file} has {found.bytes} bytes instead of {self.bytes}")
        if found != self:
            raise DamagedError(f"{file} was changed after it was written: its checksum differs")


# ---------------------------------------------------------------- writing


def write_json(file: Path, content: Mapping[str, Any]) -> Stamp:
    """Write a mapping as indented JSON with its format, our version and its checksum."""
    return write_text(file, sealed(content))


def write_text(file: Path, text: str) -> Stamp:
    """Write text as UTF-8; atomically, as all functions here that write."""
    return atomically(file, lambda part: part.write_bytes(text.encode()))


def write_table(file: Path, table: pd.DataFrame) -> Stamp:
    """Write a table as Parquet; its index is not kept."""
    import pyarrow as pa  # slow to load
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    version = {b"isoloss_format_version": str(FORMAT_VERSION).encode()}
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **version})

    def write(part: Path) -> None:
        with part.open("wb") as opened:  # of a path, pyarrow takes "a:b/c" for a URI
            pq.write_table(arrow, opened)

    return atomically(file, write)


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> Stamp:
    """Write tensors as safetensors, with strings by name in its metadata."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format_version": str(FORMAT_VERSION), **(about or {})}
    return atomically(file, lambda part: save_file(whole, part, metadata))


def write_folder(
    folder: Path,
    content: Mapping[str, Any],
    files: Mapping[str, pd.DataFrame | Mapping[str, Tensor]],
) -> None:
    """Write tables and tensors, by file name, and last the `outcome.json` that vouches for them."""
    remove(folder / OUTCOME)  # what it says is not of the files that come now
    stamps = {
        name: write_table(folder / name, what)
        if not isinstance(what, Mapping)
        else write_tensors(folder / name, what)
        for name, what in files.items()
    }
    named = {name: asdict(stamp) for name, stamp in stamps.items()}
    write_json(folder / OUTCOME, {**content, "files": named})


def atomically(file: Path, write: Callable[[Path], object]) -> Stamp:
    """Write beside the place, flush, rename, flush the folder; the file's stamp."""
    part = file.with_name(f".{file.name}.part")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.touch()
            mode = part.stat().st_mode
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


# ---------------------------------------------------------------- reading


def read_json(file: Path) -> dict[str, Any]:
    """What `write_json` was given; DamagedError, or ResultsError where it is of another version."""
    with reading(file):
        return unsealed(file, file.read_bytes().decode("utf-8"))


def read_table(file: Path, stamp: Stamp) -> pd.DataFrame:
    """What `write_table` was given, if the file is the one stamped."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(file):
        content = pa.BufferReader(_read(file, stamp))
        return cast("pd.DataFrame", pq.read_table(content).to_pandas())


def read_tensors(file: Path, stamp: Stamp) -> dict[str, Tensor]:
    """What `write_tensors` was given, if the file is the one stamped."""
    with reading(file):
        loaded = load(_read(file, stamp))
        # clones, one at a time, since memory from torch is aligned
        return {name: loaded.pop(name).clone() for name in list(loaded)}


@dataclass(frozen=True)
class Ending:
    """What tells how a folder's run ended, before any of its tables and tensors is read."""

    content: dict[str, Any]  # of `outcome.json`
    about: dict[str, Any]  # of `config.json`, where there is one
    stamps: dict[str, Stamp]  # of the files beside, by name


def read_ending(folder: Path) -> Ending:
    """Read what `write_folder` wrote last, and `config.json` where there is one."""
    file, config = folder / OUTCOME, folder / "config.json"
    content = read_json(file)
    if type(content.get("outcome")) is not str or type(content.get("message")) is not str:
        raise DamagedError(f"{file} is damaged: it names no outcome")
    about = read_json(config) if "config" in content or config.exists() else {}
    if "config" in content and digest_of(about.get("config")) != content["config"]:
        raise DamagedError(f"{file} is of a run with other settings")
    try:
        stamps = {name: Stamp(**stamp) for name, stamp in content.get("files", {}).items()}
    except (TypeError, AttributeError) as error:
        raise DamagedError(f"{file} is damaged: {error}") from error
    for name in stamps:
        if Path(name).name != name:
            raise DamagedError(f"{file} is damaged: {name!r} is not the name of a file beside it")
    return Ending(content, about, stamps)


def _read(file: Path, stamp: Stamp) -> bytes:
    content = file.read_bytes()
    stamp.check(file, content)
    return content


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


# ---------------------------------------------------------------- JSON that vouches for itself


def sealed(content: Mapping[str, Any], indent: int | None = 2) -> str:
    """JSON text with the format, our version and the SHA-256 of all the rest."""
    whole = {"format_version": FORMAT_VERSION, "isoloss": __version__, **content}
    body = json.dumps(whole, indent=indent, allow_nan=False)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**whole, "sha256": digest}, indent=indent, allow_nan=False) + "\n"


def unsealed(file: Path, text: str, indent: int | None = 2) -> dict[str, Any]:
    """What `sealed` was given; raises as `read_json`."""
    try:
        content = json.loads(text)
        version, signed = content["format_version"], content.pop("sha256", None) is not None
        if type(version) is not int:
            raise ValueError(version)
        whole = sealed(content, indent) == text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{file} is damaged: it is not the JSON that isoloss writes") from error
    if not whole and (signed or version == FORMAT_VERSION):
        raise DamagedError(f"{file} was changed after it was written: its checksum differs")
    if version != FORMAT_VERSION:
        writer = content.get("isoloss")
        by = f"isoloss {writer}" if isinstance(writer, str) else "an earlier isoloss"
        remedy = "read it with that version, or make the results again"
        raise ResultsError(
            f"{file} has format {version}, written by {by}, and isoloss {__version__} reads format "
            f"{FORMAT_VERSION}; {'upgrade isoloss' if version > FORMAT_VERSION else remedy}, in "
            f"another folder or with --restart"
        )
    del content["format_version"], content["isoloss"]
    return content


def digest_of(content: Any) -> str:
    """The SHA-256 of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- the disk and the system


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


def move_aside(what: Path, folder: Path, *, copy: bool = False) -> Path:
    """Move a file or folder into another, under a name with the time that is not taken."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
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
