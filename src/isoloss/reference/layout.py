"""What the reference's files are called and how they are read, without running what is in them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import InputError
from isoloss.files import ResultsError

Arrays = dict[str, NDArray[Any]]

WALK_NAME = re.compile(r"logs_(?P<experiment>\w+)_exp_(?P<run>\d+)\.npz")
DECAY_NAME = re.compile(r"logs_regpenidx_(?P<penalty>\d+)_expidx_(?P<run>\d+)\.npz")
DECAY_FOLDER = "L2_"

PENALTIES = (0.0, *(10.0**k for k in range(-6, 7)))
"""The reference's penalties; files count them from 1."""

METRICS = {"accuracy": "categorical_accuracy", "mse": "mean_squared_error"}
"""Keras' names of the metrics."""


def walk_file(folder: FilePath, experiment: str, run: int) -> FilePath:
    """Where the reference's code keeps a walk; its runs count from 1, ours from 0."""
    return folder / experiment / f"logs_{experiment}_exp_{run + 1}.npz"


def decay_file(folder: FilePath, experiment: str, penalty: int, run: int) -> FilePath:
    """Where it keeps a network of weight decay; penalty and run from 0, its files count from 1."""
    name = f"logs_regpenidx_{penalty + 1}_expidx_{run + 1}.npz"
    return folder / f"{DECAY_FOLDER}{experiment}" / name


def read(file: FilePath, needed: Sequence[str]) -> Arrays:
    """The numeric arrays of a file.

    Arrays of Python objects, as the reference writes where it has a None, would run code to be
    read: they are left out.

    Args:
        file: An `.npz` file.
        needed: Arrays that must be there.

    Returns:
        The arrays by name.

    Raises:
        ResultsError: The file is damaged or has not the arrays.
    """
    arrays: Arrays = {}
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as content:
            for name in content.files:
                try:
                    arrays[name] = content[name]
                except ValueError as error:
                    if "allow_pickle" not in str(error):
                        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ResultsError(
            f"{file} cannot be read: {error}; leave it out or copy it anew"
        ) from error
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ResultsError(
            f"{file} is no log of the reference: it has no numbers called {', '.join(missing)}; "
            f"leave it out"
        )
    return arrays


def find(folder: FilePath, name: re.Pattern[str]) -> list[tuple[FilePath, re.Match[str]]]:
    """The files of a pattern in a folder and in the folders in it, by the numbers in their names.

    Raises:
        InputError: There is no such folder.
    """
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
