"""Small files in the official formats, written independently of the readers."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

from isoloss.experiments.datasets import DataFile


def idx(array: np.ndarray) -> bytes:
    """MNIST's format, for bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def mnist(*arrays: np.ndarray) -> dict[str, bytes]:
    """The four files: training images and classes, test images and classes."""
    kinds = ("images-idx3", "labels-idx1")
    names = [f"mnist/{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in kinds]
    return {name: zipped(idx(array)) for name, array in zip(names, arrays, strict=True)}


def batch(images: np.ndarray, classes: np.ndarray) -> bytes:
    """A CIFAR-10 batch, with numpy's functions where numpy 1 had them."""
    names = [b"image_%04d.png" % number for number in range(len(images))]
    entries = {b"labels": classes.tolist(), b"data": images, b"filenames": names}
    return pickle.dumps(entries, protocol=3).replace(b"cnumpy._core.", b"cnumpy.core.")


def random_batch(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
    return images, generator.integers(0, 10, count)


def tar_gz(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return zipped(out.getvalue())


# Five times four cars, of which three have a horsepower.
AUTO_MPG = 5 * (
    b'18.0   8   307.0      130.0      3504.      12.0   70  1\t"chevrolet chevelle malibu"\n'
    b'25.0   4   98.00      ?          2046.      19.0   71  1\t"ford pinto"\n'
    b'24.0   4   113.0      95.00      2372.      15.0   72  3\t"toyota corona mark ii"\n'
    b'26.0   4   97.00      46.00      1835.      20.5   70  2\t"volkswagen 1131 deluxe sedan"\n'
)


def described(path: str, data: bytes, *urls: str) -> DataFile:
    """The entry of a made file in the table of official files."""
    return DataFile(path, len(data), hashlib.sha256(data).hexdigest(), urls)


def placed(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a data folder."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
