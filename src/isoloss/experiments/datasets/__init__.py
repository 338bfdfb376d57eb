"""The data sets of the experiments, read from their official files.

`load(name)` gives a `Dataset` of numpy arrays. Files are looked for in `$ISOLOSS_DATA`, then in a
cache of this user, and are downloaded to the cache otherwise; each is compared with its published
hash before it is read, and none is ever run.
"""

from __future__ import annotations

from isoloss.experiments.datasets import auto_mpg, cifar10, iris, mnist
from isoloss.experiments.datasets.dataset import Dataset
from isoloss.experiments.datasets.download import FileReport, fetch, verify
from isoloss.experiments.datasets.draw import draw
from isoloss.experiments.datasets.errors import DataError
from isoloss.experiments.datasets.files import names
from isoloss.experiments.datasets.locate import at_hand

_LOADERS = {
    "iris": iris.load,
    "auto_mpg": auto_mpg.load,
    "mnist": mnist.load,
    "cifar10": cifar10.load,
}


def load(name: str) -> Dataset:
    """Read a data set; what is not at hand is downloaded first.

    Args:
        name: `"iris"`, `"auto_mpg"`, `"mnist"` or `"cifar10"`.

    Returns:
        The data set: float32 inputs; int64 classes, or float32 targets of shape (n, 1).

    Raises:
        InputError: There is no data set of that name.
        DataError: A file cannot be had or is damaged.
    """
    if not at_hand(name):
        fetch(name)
    return _LOADERS[name]()


__all__ = [
    "DataError",
    "Dataset",
    "FileReport",
    "at_hand",
    "draw",
    "fetch",
    "load",
    "names",
    "verify",
]
