"""Writing a file so that it is there whole or not at all, and reading it back only if it is whole.

Every file names its format and is checksummed: JSON inside itself, the others in the JSON file that
is written after them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoloss.errors import IsolossError
from isoloss.storage import StorageError, sentence_of, sync, writing

FORMAT_VERSION = 2
"""Of everything below a results folder; docs/formats.md tells the versions."""
_VERSION_KEY = "format_version"
_TABLE_VERSION_KEY = b"isoloss_format_version"


class ResultsError(IsolossError):
    """Files of a run cannot be read; the text names the file and what is wrong with it."""


class DamagedError(ResultsError):
    """A file is missing, torn or changed, so that nothing in it may be believed."""


@dataclass(frozen=True)
class Stamp:
    """What tells a file's content.

    Attributes:
        sha256: Hexadecimal digest of all bytes.
        bytes: Their number.
    """

    sha256: str
    bytes: int

    @staticmethod
    def of(file: Path) -> Stamp:
        """The stamp of a file as it is now."""
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            return Stamp(digest, content.tell())

    def check(self, file: Path) -> None:
        """Insist that a file is the one that was stamped.

        Args:
            file: The file.

        Raises:
            DamagedError: It is missing or another.
        """
        with _reading(file):
            found = Stamp.of(file)
        if found.bytes != self.bytes:
            raise DamagedError(f"{file} has {found.bytes} bytes instead of {self.bytes}")
        if found != self:
            raise DamagedError(f"{file} was changed after it was written: its checksum differs")


def write_json(file: Path, content: Mapping[str, Any]) -> Stamp:
    """Write a mapping as indented JSON, atomically, with its format version and checksum.

    Args:
        file: Where to.
        content: What; NaN is refused, since JSON has none.

    Returns:
        The file's stamp.
    """
    text = _sealed({_VERSION_KEY: FORMAT_VERSION, **_unsealed(content)})
    return _atomically(file, lambda part: part.write_text(text, encoding="utf-8"))


def write_text(file: Path, text: str) -> Stamp:
    """Write text as UTF-8, atomically.

    Args:
        file: Where to.
        text: What.

    Returns:
        The file's stamp.
    """
    return _atomically(file, lambda part: part.write_text(text, encoding="utf-8"))


def write_table(file: Path, table: pd.DataFrame) -> Stamp:
    """Write a table as Parquet, atomically.

    Args:
        file: Where to.
        table: What; its index is not kept.

    Returns:
        The file's stamp.
    """
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), _TABLE_VERSION_KEY: str(FORMAT_VERSION).encode()}
    arrow = arrow.replace_schema_metadata(metadata)
    return _atomically(file, lambda part: pq.write_table(arrow, part))


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> Stamp:
    """Write tensors as safetensors, atomically.

    Args:
        file: Where to.
        tensors: What, by name.

    Returns:
        The file's stamp.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return _atomically(
        file, lambda part: save_file(whole, part, {_VERSION_KEY: str(FORMAT_VERSION)})
    )


def write_arrays(file: Path, arrays: Mapping[str, NDArray[Any]]) -> Stamp:
    """Write numeric arrays as `.npz`, atomically.

    Args:
        file: Where to.
        arrays: What, by name.

    Returns:
        The file's stamp.
    """

    def write(part: Path) -> None:
        with part.open("wb") as opened:
            np.savez(opened, allow_pickle=False, **arrays)

    return _atomically(file, write)


def read_json(file: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Args:
        file: Where from.

    Returns:
        The content, without the checksum.

    Raises:
        DamagedError: The file is missing, torn or changed.
        ResultsError: It is of a newer format.
    """
    with _reading(file):
        raw = file.read_bytes()
    try:
        text = raw.decode("utf-8")
        content = json.loads(text, parse_constant=_no_constant)
        version = content[_VERSION_KEY]
        if type(version) is not int or version < 1:
            raise ValueError(f"{version!r} is no format version")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{file} is damaged: it is not the JSON that isoloss writes") from error
    check_version(file, version)
    if version == 1:  # these had no checksum
        if "sha256" in content:
            raise DamagedError(f"{file} is damaged: its format version was changed")
    elif text != _sealed(_unsealed(content)):
        raise DamagedError(f"{file} was changed after it was written: its checksum differs")
    return _unsealed(content)


def read_table(file: Path, stamp: Stamp | None) -> pd.DataFrame:
    """Read what `write_table` wrote.

    Args:
        file: Where from.
        stamp: What it must be; None for files of format 1, which had none.

    Returns:
        The table.

    Raises:
        DamagedError: The file is missing, torn or changed.
    """
    if stamp is not None:
        stamp.check(file)
    with _reading(file):
        return cast("pd.DataFrame", pq.read_table(file, memory_map=False).to_pandas())


def read_tensors(file: Path, stamp: Stamp | None) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote.

    Args:
        file: Where from.
        stamp: What it must be; None for files of format 1, which had none.

    Returns:
        The tensors by name, in memory of their own.

    Raises:
        DamagedError: The file is missing, torn or changed.
    """
    if stamp is not None:
        stamp.check(file)
    with _reading(file):
        # clones: those loaded may lie in the file itself, unaligned
        return {name: tensor.clone() for name, tensor in load_file(file).items()}


def check_version(file: Path, version: int) -> None:
    """Refuse a newer format.

    Args:
        file: The file.
        version: Its format version.

    Raises:
        ResultsError: It is newer than this isoloss.
    """
    if version > FORMAT_VERSION:
        raise ResultsError(
            f"{file} has format {version}, newer than the {FORMAT_VERSION} this isoloss reads; "
            f"upgrade isoloss"
        )


def _atomically(file: Path, write: Callable[[Path], object]) -> Stamp:
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


@contextlib.contextmanager
def _reading(file: Path) -> Generator[None]:
    """Errors of reading: what is wrong with the file, or what the system does not allow now."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedError(f"{file} is missing") from error
    except IsADirectoryError as error:
        raise DamagedError(f"{file} is a folder instead of a file") from error
    except OSError as error:
        if error.errno is None:  # Parquet's way to say that the content is wrong
            raise DamagedError(f"{file} is damaged: {error}") from error
        raise StorageError(f"cannot read {file}: {sentence_of(error)}") from error
    except Exception as error:
        raise DamagedError(f"{file} is damaged: {type(error).__name__}: {error}") from error


def _sealed(content: Mapping[str, Any]) -> str:
    body = json.dumps(content, indent=2, allow_nan=False)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=2, allow_nan=False) + "\n"


def _unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "sha256"}


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
