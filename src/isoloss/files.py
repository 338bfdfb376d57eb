"""Files that are there whole or not at all, and are believed only where they are whole.

The SHA-256 of JSON is in the file itself, that of tables and tensors in the `outcome.json` that is
written after them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from isoloss import __version__
from isoloss.disk import (
    DamagedError,
    ResultsError,
    Stamp,
    atomically,
    open_plain,
    read_bytes,
    reading,
    remove,
)

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 3
"""Of everything that is written; docs/formats.md describes each file."""
OUTCOME = "outcome.json"
FAILED = "failed"
MOST_CELLS_A_BYTE = 100
"""Of a table; ours have less than two, as each row holds times and losses."""

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


# ---------------------------------------------------------------- reading


def read_json(file: Path) -> dict[str, Any]:
    """What `write_json` was given; DamagedError, or ResultsError where it is of another version."""
    with reading(file):
        return unsealed(file, read_bytes(file).decode("utf-8"))


def read_table(file: Path, stamp: Stamp) -> pd.DataFrame:
    """What `write_table` was given, if the file is the one stamped."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(file):
        content = _read(file, stamp)
        opened = pq.ParquetFile(pa.BufferReader(content))
        cells = opened.metadata.num_rows * opened.metadata.num_columns
        if cells > MOST_CELLS_A_BYTE * len(content):  # it would fill the memory
            raise DamagedError(f"{file} is damaged: its {len(content)} bytes hold {cells} entries")
        return cast("pd.DataFrame", opened.read().to_pandas())


def read_tensors(file: Path, stamp: Stamp, *, mapped: bool = False) -> dict[str, Tensor]:
    """What `write_tensors` was given, if the file is the one stamped; mapped, each page of it
    is in memory only once it is used."""
    if mapped:
        return _mapped(file, stamp)
    with reading(file), torch.device("cpu"):  # empty ones go to torch's default device
        loaded = load(_read(file, stamp))
        # clones, one at a time, since memory from torch is aligned
        return {name: loaded.pop(name).clone() for name in list(loaded)}


def _mapped(file: Path, stamp: Stamp) -> dict[str, Tensor]:
    with reading(file), open_plain(file, "rb") as opened:
        stamp.check(file, opened)
        with safe_open(file, "pt") as found:
            tensors = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
        if not os.path.samestat(os.fstat(opened.fileno()), file.lstat()):
            raise DamagedError(f"{file} was replaced while it was read")
        return tensors


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
    seed = _config_of(config, about).get("seed")
    if seed is not None and type(seed) is not int:
        raise DamagedError(f"{config} is damaged: seed must be a whole number, got {seed!r}")
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


def _config_of(file: Path, about: Mapping[str, Any]) -> Mapping[str, Any]:
    """What determines a run, of which mappings are read as such."""
    for part in (about, about.get("config", {})):
        for name in ("config", "made_with", "method", "stop", "record", "project"):
            if not isinstance(part.get(name, {}), dict):
                raise DamagedError(f"{file} is damaged: {name} must be a mapping")
    return about.get("config", {})


def _read(file: Path, stamp: Stamp) -> bytes:
    content = read_bytes(file)
    stamp.check(file, content)
    return content


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
