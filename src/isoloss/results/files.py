"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save_file
from torch import Tensor

from isoloss.errors import InputError


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, atomically; NaN is refused, since JSON has none."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    _atomically(file, lambda part: part.write_text(text, encoding="utf-8"))


def write_text(file: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    _atomically(file, lambda part: part.write_text(text, encoding="utf-8"))


def write_table(file: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, atomically."""
    _atomically(file, lambda part: table.to_parquet(part, index=False))


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _atomically(file, lambda part: save_file(whole, part))


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


def _atomically(file: Path, write: Callable[[Path], object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        write(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
