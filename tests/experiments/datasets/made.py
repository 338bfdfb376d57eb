"""Small files in the official formats, written independently of the readers."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np

from isoloss.experiments.datasets.files import DataFile

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def string(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + u4(len(text)) + text


def u4(number: int) -> bytes:
    return struct.pack("<i", number)


def listed(items: list[bytes]) -> bytes:
    return b"]q\x05(" + b"".join(items) + b"e"


def array(images: np.ndarray) -> bytes:
    """How Python 2 and numpy pickled an array of bytes."""
    count, width = images.shape
    made = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b"
    dtype += b"(K\x03U\x01|NNN" + 2 * (b"J" + u4(-1)) + b"K\x00tb"
    shape = b"J" + u4(count) + b"M" + struct.pack("<H", width) + b"\x86"
    return (
        made
        + b"(K\x01"
        + shape
        + dtype
        + b"\x89"
        + b"T"
        + u4(images.size)
        + images.tobytes()
        + b"tb"
    )


def batch(images: np.ndarray, classes: np.ndarray, **other: bytes) -> bytes:
    """A CIFAR-10 batch; `other` gives pickled values that replace or join the usual four."""
    names = [string(b"image_%04d.png" % i) for i in range(len(images))]
    entries = {
        "batch_label": string(b"training batch 1 of 5"),
        "labels": listed([b"K" + bytes([label]) for label in classes]),
        "data": array(images),
        "filenames": listed(names),
    } | other
    body = b"".join(string(key.encode()) + value for key, value in entries.items())
    return b"\x80\x02}q\x01(" + body + b"u."


def random_batch(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
    return images, generator.integers(0, 10, count)


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


AUTO_MPG = (
    b'18.0   8   307.0      130.0      3504.      12.0   70  1\t"chevrolet chevelle malibu"\n'
    b'25.0   4   98.00      ?          2046.      19.0   71  1\t"ford pinto"\n'
    b'24.0   4   113.0      95.00      2372.      15.0   72  3\t"toyota corona mark ii"\n'
    b'26.0   4   97.00      46.00      1835.      20.5   70  2\t"volkswagen 1131 deluxe sedan"\n'
)


def described(path: str, data: bytes, *urls: str) -> DataFile:
    """The entry of a made file in the table of official files."""
    return DataFile(
        dataset=path.split("/")[0],
        path=path,
        size=len(data),
        md5=hashlib.md5(data).hexdigest(),
        sha256=hashlib.sha256(data).hexdigest(),
        urls=urls,
        license="made for a test",
    )


def placed(folder: Path, files: dict[str, bytes]) -> tuple[DataFile, ...]:
    """Write files into a data folder; their entries in the table."""
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return tuple(described(path, data) for path, data in files.items())
