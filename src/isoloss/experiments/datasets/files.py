"""The official files of each data set: where they come from and what they hash to."""

from __future__ import annotations

from dataclasses import dataclass

from isoloss.errors import unknown

_MNIST = (
    "CC BY-SA 3.0; Y. LeCun, C. Cortes, C. J. C. Burges; cite LeCun, Bottou, Bengio, Haffner, "
    "Gradient-based learning applied to document recognition, Proc. IEEE 86(11), 1998"
)
_CIFAR10 = (
    "no formal license; cite A. Krizhevsky, Learning Multiple Layers of Features from Tiny "
    "Images, technical report, 2009"
)
_AUTO_MPG = (
    "CC BY 4.0; R. Quinlan, Auto MPG, UCI Machine Learning Repository, 1993, doi:10.24432/C5859H"
)


@dataclass(frozen=True)
class DataFile:
    """One official file.

    Attributes:
        dataset: Name of the data set that it belongs to.
        path: Where it lies in a data folder, for example `mnist/t10k-labels-idx1-ubyte.gz`.
        size: In bytes.
        md5: As the data set's home or, for MNIST, common practice publishes it.
        sha256: What the file is checked against.
        urls: Where it can be downloaded from: the data set's own home, then a mirror. Empty for
            what comes only as part of another file.
        license: License and citation, one line.
    """

    dataset: str
    path: str
    size: int
    md5: str
    sha256: str
    urls: tuple[str, ...]
    license: str


def _mnist(name: str, size: int, md5: str, sha256: str) -> DataFile:
    urls = (
        f"http://yann.lecun.com/exdb/mnist/{name}",
        f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}",
    )
    return DataFile("mnist", f"mnist/{name}", size, md5, sha256, urls, _MNIST)


def _batch(name: str, size: int, md5: str, sha256: str) -> DataFile:
    return DataFile("cifar10", f"cifar10/{name}", size, md5, sha256, (), _CIFAR10)


MNIST = (
    _mnist(
        "train-images-idx3-ubyte.gz",
        9_912_422,
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    _mnist(
        "train-labels-idx1-ubyte.gz",
        28_881,
        "d53e105ee54ea40749a09fcbcd1e9432",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    _mnist(
        "t10k-images-idx3-ubyte.gz",
        1_648_877,
        "9fb629c4189551a2d022fa330f9573f3",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    _mnist(
        "t10k-labels-idx1-ubyte.gz",
        4_542,
        "ec29112dd5afa0611ce80d1b7f02629c",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
)

CIFAR10_BATCHES = (
    _batch(
        "data_batch_1",
        31_035_704,
        "c99cafc152244af753f735de768cd75f",
        "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    ),
    _batch(
        "data_batch_2",
        31_035_320,
        "d4bba439e000b95fd0a9bffe97cbabec",
        "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    ),
    _batch(
        "data_batch_3",
        31_035_999,
        "54ebc095f3ab1f0389bbae665268c751",
        "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    ),
    _batch(
        "data_batch_4",
        31_035_696,
        "634d18415352ddfa80567beed471001a",
        "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    ),
    _batch(
        "data_batch_5",
        31_035_623,
        "482c414d41f54cd18b22e5b47cb7c3cb",
        "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    ),
    _batch(
        "test_batch",
        31_035_526,
        "40351d587109b95175f43aff81a1287e",
        "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
    ),
)

CIFAR10_ARCHIVE = DataFile(
    "cifar10",
    "cifar10/cifar-10-python.tar.gz",
    170_498_071,
    # The MD5 is published at www.cs.toronto.edu/~kriz/cifar.html, the SHA-256 in Keras
    # (keras/datasets/cifar10.py).
    "c58f30108f718f92721af3b95e74349a",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
    _CIFAR10,
)

AUTO_MPG = DataFile(
    "auto_mpg",
    "auto_mpg/auto-mpg.data",
    30_286,
    "b858f4580d0066c48e260dd3b96f1ed8",
    "48b830e11feee5572525f8f1691ddb9d38d3d7b7063edcd8fca672c2a5e17d8d",
    ("https://archive.ics.uci.edu/ml/machine-learning-databases/auto-mpg/auto-mpg.data",),
    _AUTO_MPG,
)

FORMS: dict[str, tuple[tuple[DataFile, ...], ...]] = {
    "iris": ((),),  # comes with scikit-learn
    "auto_mpg": ((AUTO_MPG,),),
    "mnist": (MNIST,),
    "cifar10": (CIFAR10_BATCHES, (CIFAR10_ARCHIVE,)),
}
"""For each data set the forms it may lie on disk in; the last one is what is downloaded."""


def names() -> tuple[str, ...]:
    """The data sets there are.

    Returns:
        Their names, as `load`, `fetch` and `verify` take them.
    """
    return tuple(FORMS)


def forms(name: str) -> tuple[tuple[DataFile, ...], ...]:
    """The forms that a data set may lie on disk in.

    Args:
        name: The data set.

    Returns:
        For each form its files; the last form is what is downloaded.

    Raises:
        InputError: There is no data set of that name.
    """
    if name not in FORMS:
        raise unknown("data set", name, FORMS)
    return FORMS[name]
