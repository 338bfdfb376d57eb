"""The reader of CIFAR-10's archive on archives made here, whole and damaged."""

from __future__ import annotations

import gzip
import io
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.experiments.datasets.made import tar, zipped

from isoloss.experiments.datasets import DataError
from isoloss.experiments.datasets import archive as module
from isoloss.experiments.datasets.archive import read_members

MEMBERS = {"f/a": b"first" * 200, "f/read.me": b"other", "f/b": b"second" * 100}
WANTED = ("f/a", "f/b")
TAR = tar(MEMBERS)
ARCHIVE = zipped(TAR)
LONG = zipped(TAR + bytes(100_000))
fuzz = settings(max_examples=300, deadline=None, derandomize=True)


def members(data: bytes) -> dict[str, bytes]:
    return dict(read_members(io.BytesIO(data), WANTED, "the file"))


def special(kind: bytes, name: str = "f/a", **fields: object) -> bytes:
    """An archive with one member of another kind before the usual ones."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        info.type = kind
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info)
    return zipped(out.getvalue()[:512] + TAR)


def test_reads_the_members_asked_for_in_their_order() -> None:
    assert list(members(ARCHIVE).items()) == [("f/a", MEMBERS["f/a"]), ("f/b", MEMBERS["f/b"])]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "damaged"),
        (TAR, "damaged"),
        (zipped(b""), "damaged"),
        (zipped(bytes(10240)), "lacks f/a, f/b"),
        (zipped(tar({"f/a": b"a"})), "lacks f/b"),
        (zipped(tar({"f/a": b"a"})[:1024] + TAR), "has f/a twice"),
        (special(tarfile.SYMTYPE, linkname="/etc/passwd"), "f/a in it is not a regular file"),
        (special(tarfile.LNKTYPE, linkname="f/b"), "f/a in it is not a regular file"),
        (special(tarfile.DIRTYPE), "f/a in it is not a regular file"),
        (special(tarfile.FIFOTYPE), "f/a in it is not a regular file"),
        (special(tarfile.REGTYPE), "f/a in it is not a regular file of usual size"),
        (special(tarfile.REGTYPE, size=2**40), "f/a in it is not a regular file of usual size"),
        (special(tarfile.REGTYPE, name="f/z", size=2**40), "damaged"),
        (special(tarfile.REGTYPE, name="f/z", size=2**80), "damaged"),
        (special(tarfile.REGTYPE, name="f/z", size=-512), "lacks f/a, f/b"),
        (special(tarfile.XHDTYPE, name="f/z", size=2**40), "damaged"),
        (special(tarfile.GNUTYPE_LONGNAME, name="f/z", size=-512), "damaged"),
        (zipped(tar({f"m{i}": b"" for i in range(65)})), "more than 64 members"),
        (ARCHIVE[:-6] + b"a" + ARCHIVE[-5:], "damaged"),
        (LONG[:-6] + b"a" + LONG[-5:], "damaged"),  # far behind the last member
        (zipped(tar({"f/a": b"a", "../../f/b": b"b", "/f/b": b"b"})), "lacks f/b"),
    ],
)
def test_refuses_what_is_not_the_archive(data: bytes, why: str) -> None:
    with pytest.raises(DataError, match=r"^the file is not the archive of CIFAR-10: ") as caught:
        members(data)
    assert why in str(caught.value)


def test_a_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 10_000_000)
    bomb = zipped(tar({"f/zeros": bytes(20_000_000)} | MEMBERS))
    with pytest.raises(DataError, match="would unpack to more than 10000000 bytes"):
        members(bomb)


def test_a_chain_of_extended_headers_is_stopped() -> None:
    link = tarfile.TarInfo("x")
    link.type = tarfile.XHDTYPE
    with pytest.raises(DataError, match="damaged"):
        members(zipped(link.tobuf(tarfile.USTAR_FORMAT) * 5000 + TAR))


def test_the_callers_own_errors_pass() -> None:
    reader = read_members(io.BytesIO(ARCHIVE), WANTED, "the file")
    next(reader)
    with pytest.raises(KeyError):
        reader.throw(KeyError("mine"))  # pyright: ignore


@fuzz
@given(st.integers(0, len(ARCHIVE) - 1))
def test_a_truncation_is_refused(length: int) -> None:
    with pytest.raises(DataError):
        members(ARCHIVE[:length])


@fuzz
@given(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(position: int, value: int) -> None:
    data = bytearray(ARCHIVE)
    data[position] = value
    try:
        read = members(bytes(data))
    except DataError:
        return
    assert read == {name: MEMBERS[name] for name in WANTED}


@fuzz
@given(st.integers(0, len(TAR) // 512 - 1), st.integers(0, 511), st.integers(0, 255))
def test_a_changed_byte_before_compression_changes_one_byte(
    block: int, offset: int, value: int
) -> None:
    data = bytearray(TAR)
    data[512 * block + offset] = value
    try:
        read = members(gzip.compress(data, compresslevel=1))
    except DataError:
        return
    assert set(read) == set(WANTED)
    for name in WANTED:
        before, after = (np.frombuffer(x[name], np.uint8) for x in (MEMBERS, read))
        assert before.shape == after.shape
        assert np.count_nonzero(before != after) <= 1


@fuzz
@given(st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=6))
def test_a_header_with_a_right_checksum_can_say_anything(changes: list[tuple[int, int]]) -> None:
    header = bytearray(TAR[:512])
    for offset, value in changes:
        header[offset] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    try:
        read = members(gzip.compress(bytes(header) + TAR[512:], compresslevel=1))
    except DataError:
        return
    assert read["f/b"] == MEMBERS["f/b"]
    assert MEMBERS["f/a"].startswith(read["f/a"]) or read["f/a"].startswith(MEMBERS["f/a"])
