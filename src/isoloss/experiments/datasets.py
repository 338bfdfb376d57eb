"""The data sets of the experiments: finding, checking and loading their official files.

Files are looked for in `$ISOLOSS_DATA`, then in a cache of this user, and are downloaded to the
cache otherwise. Each is compared with its published hash before it is read. Packs, which hold what
some runs need, come before them where `$ISOLOSS_DATA` is one or is a folder of some.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import DataError, require_extra, unknown
from isoloss.experiments import packs
from isoloss.experiments.download import download
from isoloss.experiments.readers import READERS, Dataset, Examples, Rows


@dataclass(frozen=True)
class DataFile:
    """One official file; `urls` are its own home, then mirrors, and none for part of an archive."""

    path: str  # in a data folder, DATASET/NAME
    size: int
    sha256: str
    urls: tuple[str, ...]


# A table's first line names the data set and where its files are downloaded from. The MD5 of each
# file of MNIST and CIFAR-10 was compared with the published one; the SHA-256 of CIFAR-10's archive
# is that of Keras (keras/datasets/cifar10.py).

# CC BY 4.0; R. Quinlan, Auto MPG, UCI Machine Learning Repository, 1993, doi:10.24432/C5859H.
_AUTO_MPG = """
auto_mpg https://archive.ics.uci.edu/ml/machine-learning-databases/auto-mpg/
48b830e11feee5572525f8f1691ddb9d38d3d7b7063edcd8fca672c2a5e17d8d 30286 auto-mpg.data
"""
# CC BY-SA 3.0; Y. LeCun, C. Cortes, C. J. C. Burges; cite LeCun, Bottou, Bengio, Haffner,
# Gradient-based learning applied to document recognition, Proc. IEEE 86(11), 1998.
_MNIST = """
mnist http://yann.lecun.com/exdb/mnist/ https://ossci-datasets.s3.amazonaws.com/mnist/
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 9912422 train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c 28881 train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6 1648877 t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6 4542 t10k-labels-idx1-ubyte.gz
"""
# No formal license; cite A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images.
_CIFAR10_FOLDER = """
cifar10
54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd 31035704 data_batch_1
766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8 31035320 data_batch_2
0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9 31035999 data_batch_3
3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b 31035696 data_batch_4
d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154 31035623 data_batch_5
f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831 31035526 test_batch
"""
_CIFAR10_ARCHIVE = """
cifar10 https://www.cs.toronto.edu/~kriz/
6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce 170498071 cifar-10-python.tar.gz
"""

Form = tuple[DataFile, ...]  # files that together hold a data set


def _form(table: str) -> Form:
    (dataset, *homes), *rows = (line.split() for line in table.strip().split("\n"))
    return tuple(
        DataFile(f"{dataset}/{name}", int(size), sha256, tuple(url + name for url in homes))
        for sha256, size, name in rows
    )


FORMS: dict[str, tuple[Form, ...]] = {
    "iris": ((),),  # comes with scikit-learn
    "auto_mpg": (_form(_AUTO_MPG),),
    "mnist": (_form(_MNIST),),
    "cifar10": (_form(_CIFAR10_FOLDER), _form(_CIFAR10_ARCHIVE)),
}
"""For each data set the forms it may lie on disk in; the last one is what is downloaded."""


@dataclass(frozen=True)
class FileReport:
    """The state of one official file."""

    file: DataFile
    state: Literal["present", "missing", "damaged"]
    where: Path | None = None  # None where it is missing
    problem: str = ""  # what is damaged

    def error(self) -> DataError:
        """Why the file cannot be read, with the remedy."""
        fetch = f"run `isoloss data fetch {Path(self.file.path).parent}`"
        if self.where is None:
            return DataError(f"{self.missing()}; place it there, or {fetch}")
        damaged = f"{self.where} is not the official file: {self.problem}"
        return DataError(f"{damaged}; delete it, then {fetch}")

    def missing(self) -> str:
        """That the file is not where it should be."""
        return f"{self.file.path} is not in {' or '.join(map(str, _folders()))}"


def at_hand(name: str) -> bool:
    """Whether `draw` needs no download; no file is read, so that this takes no time."""
    return pack_of(name) is not None or _complete_form(name) is not None


def pack_of(name: str) -> Path | None:
    """The pack that holds a data set, if `$ISOLOSS_DATA` is one or has one."""
    _check_name(name)
    place = _own()
    if place is None:
        return None
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    return next((file for file in files if packs.holds(file, name)), None)


def verify(name: str) -> list[FileReport]:
    """Compare a data set's files with their published hashes, in the form nearest to complete."""
    complete = _complete_form(name)
    nearest = max(reversed(FORMS[name]), key=lambda form: len([*filter(_find, form)]))
    return [_look(file)[0] for file in complete or nearest]


def fetch(name: str) -> list[FileReport]:
    """Download what is missing; a report per file, all present.

    A damaged file in the cache is replaced; elsewhere files are the user's and are never touched.
    """
    return [_fetched(file) for file in _complete_form(name) or FORMS[name][-1]]


def load(name: str) -> Dataset:
    """Read a data set; what is missing is downloaded first."""
    form = _complete_form(name) or [report.file for report in fetch(name)]
    return READERS[name]((Path(file.path).name, _content(file)) for file in form)


def draw(name: str, count: int | None, seed: int) -> tuple[Rows, Dataset]:
    """Which training examples a seed draws, None for all, and the data set with those alone.

    What is missing is downloaded first.
    """
    file = pack_of(name)
    if file is None:
        dataset = load(name)
        total = len(dataset.train_targets)
        held = np.arange(total)
    else:
        status = file.stat()
        whole, held, total = _unpacked(file, name, status.st_mtime_ns, status.st_size)
        dataset = Dataset(*cast(Any, [array.copy() for array in whole]))  # the kept stay
    rows = np.arange(total) if count is None else drawn(total, count, seed)
    places = np.searchsorted(held, rows).clip(max=len(held) - 1)
    if not np.array_equal(held[places], rows):
        raise DataError(
            f"{file} does not hold all that seed {seed} draws from {name}; pack it with more runs "
            f"('isoloss data pack'), or set ISOLOSS_DATA to the official files"
        )
    examples, targets = dataset.train_examples[places], dataset.train_targets[places]
    return rows, Dataset(examples, targets, dataset.test_examples, dataset.test_targets)


@functools.lru_cache(maxsize=1)  # the runs of an experiment draw from one after another
def _unpacked(file: Path, name: str, _time: int, _size: int) -> packs.Packed:
    return packs.read(file, name)


def drawn(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """Rows of `total`, drawn without replacement by numpy's PCG64 from that seed."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.choice(total, size=count, replace=False).astype(np.int64)


def floats(examples: Examples) -> NDArray[np.float32]:
    """What networks take: pixels in [0, 1], features as they are."""
    if examples.dtype == np.float32:
        return cast(NDArray[np.float32], examples)
    return np.divide(examples, np.float32(255), dtype=np.float32)


def _cache() -> Path:
    return require_extra("platformdirs", "experiments").user_cache_path("isoloss") / "data"


def _own() -> Path | None:
    """What `$ISOLOSS_DATA` names."""
    own = os.environ.get("ISOLOSS_DATA", "")
    try:
        return Path(own).expanduser() if own else None
    except RuntimeError as error:
        raise DataError(f"ISOLOSS_DATA={own!r} names no user's home; set it to a folder") from error


def _folders() -> list[Path]:
    own = _own()
    return [*([own] if own else []), _cache()]


def _find(file: DataFile) -> Path | None:
    """The first place that has a file, unchecked."""
    for place in (folder / file.path for folder in _folders()):
        try:
            if place.is_file():
                return place
        except OSError as error:
            raise _unreadable(place, error) from error
    return None


def _complete_form(name: str) -> Form | None:
    """The first of a data set's forms whose files all lie somewhere."""
    _check_name(name)
    return next((form for form in FORMS[name] if all(map(_find, form))), None)


def _check_name(name: str) -> None:
    if name not in FORMS:
        raise unknown("data set", name, FORMS)


def _look(file: DataFile) -> tuple[FileReport, bytes]:
    """The state of a file, and the very bytes that were compared with its hash."""
    path = _find(file)
    if path is None:
        return FileReport(file, "missing"), b""
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size == file.size else b""
    except OSError as error:
        raise _unreadable(path, error) from error
    found = hashlib.sha256(content).hexdigest()
    if found == file.sha256:
        return FileReport(file, "present", path), content
    hashes = f"its SHA-256 is {found} instead of {file.sha256}"
    sizes = f"it has {size} bytes instead of {file.size}"
    return FileReport(file, "damaged", path, sizes if size != file.size else hashes), b""


def _content(file: DataFile) -> bytes:
    report, content = _look(file)
    if report.state != "present":
        raise report.error()
    return content


def _fetched(file: DataFile) -> FileReport:
    before, _ = _look(file)
    if before.state == "present":
        return before
    target = _cache() / file.path
    if before.where is not None and not (file.urls and before.where == target):
        raise before.error()
    download(file.urls, target, file.size, file.sha256, before.missing())
    return FileReport(file, "present", target)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror}; check its permissions")
