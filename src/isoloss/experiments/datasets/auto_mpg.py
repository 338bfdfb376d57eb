"""Auto MPG from the UCI repository's text file."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from isoloss.experiments.datasets.dataset import Dataset
from isoloss.experiments.datasets.errors import DataError
from isoloss.experiments.datasets.files import forms
from isoloss.experiments.datasets.locate import read
from isoloss.experiments.datasets.scale import standardize

_NUMBER = rb"\d{1,6}\.?\d{0,6}"
# mpg, cylinders, displacement, horsepower, weight, acceleration, year, origin, tab, name.
_LINE = re.compile(
    rb"(N) +(\d{1,2}) +(N) +(N|\?) +(N) +(N) +(\d\d) +([123])\t\x22[ -!#-~]+\x22".replace(
        b"N", _NUMBER
    )
)
_HORSEPOWER = 3
_EUROPE, _JAPAN, _USA = 2, 3, 1
_MOST_BYTES = 2**20


def load() -> Dataset:
    """Read Auto MPG: miles per gallon from nine standardized columns, 314 and 78 cars.

    The columns are cylinders, displacement, horsepower, weight, acceleration, model year, and 0/1
    for an origin in Europe, Japan, the USA. Cars without a horsepower are dropped; the targets are
    miles per gallon as they are.

    Returns:
        The data set.

    Raises:
        DataError: The file is missing, damaged, or does not hold what it should.
    """
    import pandas as pd  # slow to import

    [[file]] = forms("auto_mpg")
    text, path = read(file)
    table = parse_auto_mpg(text, str(path))
    table = table[~np.isnan(table[:, _HORSEPOWER])]
    origins = table[:, [7]] == np.array([_EUROPE, _JAPAN, _USA])
    features = np.hstack([table[:, 1:7], origins.astype(np.float64)])
    targets = table[:, [0]].astype(np.float32)
    # The reference's split is this pandas call; the rows left over stay in the file's order.
    train = pd.Series(range(len(table))).sample(frac=0.8, random_state=0).to_numpy()
    test = np.setdiff1d(np.arange(len(table)), train)
    train_inputs, test_inputs = standardize(features[train], features[test])
    return Dataset("auto_mpg", train_inputs, targets[train], test_inputs, targets[test])


def parse_auto_mpg(text: bytes, name: str) -> NDArray[np.float64]:
    """Read the text of `auto-mpg.data`.

    Args:
        text: All of the file.
        name: The file's name, for errors.

    Returns:
        Shape (cars, 8): mpg, cylinders, displacement, horsepower (NaN where it is missing),
        weight, acceleration, model year (two digits), origin (1 USA, 2 Europe, 3 Japan).

    Raises:
        DataError: A line is not eight numbers, a tab and a quoted name; the text names it.
    """
    if not text.endswith(b"\n") or len(text) > _MOST_BYTES:
        raise DataError(f"{name} is cut off or too long for Auto MPG; fetch it again")
    rows: list[list[float]] = []
    for number, line in enumerate(text[:-1].split(b"\n"), start=1):
        fields = _LINE.fullmatch(line)
        if fields is None:
            raise DataError(
                f"{name} is not Auto MPG's text: line {number} is not eight numbers, a tab and a "
                "quoted name; fetch it again"
            )
        rows.append([float("nan") if field == b"?" else float(field) for field in fields.groups()])
    return np.array(rows)
