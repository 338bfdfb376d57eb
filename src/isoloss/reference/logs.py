"""The reference's files: their names, reading without running what is in them, Keras' order.

Keras' flat vectors and ours both go layer by layer, weights before bias. A dense kernel is (inputs,
outputs) in Keras and (outputs, inputs) in torch; a convolution's is (rows, columns, inputs,
outputs) and (outputs, inputs, rows, columns). Keras flattens images with channels last, torch with
channels first.
"""

from __future__ import annotations

import contextlib
import math
import re
import zipfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoloss.arguments import checked
from isoloss.disk import ResultsError, atomically
from isoloss.errors import InputError, one_line
from isoloss.flat import trainable

Arrays = dict[str, NDArray[Any]]

# numbers in names count from 1, ours from 0
WALK_NAME = re.compile(r"logs_(?P<experiment>\w+)_exp_(?P<run>\d+)\.npz")
DECAY_NAME = re.compile(r"logs_regpenidx_(?P<penalty>\d+)_expidx_(?P<run>\d+)\.npz")
DECAY_FOLDER = "L2_"

LEAST_BOUND = 2**24
MOST_COMPRESSED = 100
"""Bytes of an array that are read of any file; beyond, as many times those of the file."""

METRICS = {"accuracy": "categorical_accuracy", "mse": "mean_squared_error"}
"""Keras' names of the metrics."""


def read(file: FilePath, needed: Sequence[str], also: Sequence[str] = ()) -> Arrays:
    """Numeric arrays of an `.npz` file, by name; ResultsError where needed ones are missing."""
    arrays: Arrays = {}
    with parsing(file), zipfile.ZipFile(file) as archive:
        most = max(LEAST_BOUND, MOST_COMPRESSED * file.stat().st_size)
        members = {info.filename: info for info in archive.infolist()}
        for name in (*needed, *also):
            info = members.get(f"{name}.npy")
            array = None if info is None else _array(archive, info, most)
            if array is not None:
                arrays[name] = array
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise unreadable(file, f"it has no numbers called {', '.join(missing)}")
    return arrays


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> NDArray[Any] | None:
    """A member's array, of at most so many bytes; None where it is not of numbers: objects, as
    where the reference has a None, would run code to be read."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("NumPy does not compress so")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        old = version == (1, 0)
        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(member)
        if dtype.kind not in "biuf":
            return None
        size, there = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
        if size != there:
            raise ValueError(f"{info.filename} declares {size:,} bytes and has {there:,}")
        if size > most:
            raise ValueError(
                f"{info.filename} declares {size:,} bytes, more than is read: {most:,}"
            )
        content = member.read()  # to the end, where its checksum is compared
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")
    return array.astype(dtype.newbyteorder("="))


@contextlib.contextmanager
def parsing(file: FilePath) -> Generator[None]:
    """One bad file is one sentence, whatever is wrong: zip, compression, headers, sizes, memory."""
    try:
        yield
    except ResultsError:
        raise
    except MemoryError as error:
        raise unreadable(file, "it asks for more memory than there is") from error
    except Exception as error:
        raise unreadable(file, one_line(error)) from error


def unreadable(file: FilePath, why: object) -> ResultsError:
    """The error for a file that is no log of the reference, or a damaged one."""
    return ResultsError(f"{file} cannot be read: {why}; leave it out, or copy it again")


def write(file: FilePath, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write numeric arrays as `.npz`."""

    def save(part: FilePath) -> None:
        with part.open("wb") as opened:
            np.savez(opened, allow_pickle=False, **arrays)

    atomically(file, save)


def find(folder: FilePath, name: re.Pattern[str]) -> list[tuple[FilePath, re.Match[str]]]:
    """The files of a pattern in a folder and in those in it, by the numbers in their names."""
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}; name the one that holds the reference's logs"
        )
    found = [
        (file, match)
        for file in [*folder.glob("*.npz"), *folder.glob("*/*.npz")]
        if (match := name.fullmatch(file.name))
    ]
    return sorted(
        found, key=lambda pair: (pair[0].parent, [int(n) for n in re.findall(r"\d+", pair[0].stem)])
    )


@checked
def to_keras(points: Tensor, network: nn.Module) -> Tensor:
    """Flat parameters (..., parameters) of dense and convolutional layers, in Keras' order."""
    return points[..., _order(network, points)]


@checked
def from_keras(points: Tensor, network: nn.Module) -> Tensor:
    """Points in torch's order, from Keras'; the inverse of `to_keras`."""
    return points[..., torch.argsort(_order(network, points))]


def _order(network: nn.Module, points: Tensor) -> Tensor:
    """Where each of Keras' parameters stands in torch's order."""
    trainable(network, None)  # refuses one without shapes or numbers
    pieces: list[Tensor] = []
    start, channels, flattened = 0, 0, False
    for layer in network.modules():
        if isinstance(layer, nn.Flatten):
            flattened = channels > 0
        own = list(layer.parameters(recurse=False))
        if not own:
            continue
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise InputError(
                f"layers must be dense or convolutional, as in the reference's files, got a "
                f"{type(layer).__name__}"
            )
        for parameter in own:
            index = torch.arange(start, start + parameter.numel()).view(parameter.shape)
            start += parameter.numel()
            if parameter.ndim == 4:
                index = index.permute(2, 3, 1, 0)
                channels = parameter.shape[0]
            elif parameter.ndim == 2 and flattened:
                index = index.view(len(index), channels, -1).permute(2, 1, 0)
                flattened = False
            elif parameter.ndim == 2:
                index = index.T
            pieces.append(index.reshape(-1))
    if points.ndim == 0 or points.shape[-1] != start:
        raise InputError(
            f"points must have the {start} parameters of this network, got shape "
            f"{tuple(points.shape)}"
        )
    return torch.cat(pieces)
