"""Chosen members of a compressed tar archive, read without writing anything to disk."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Collection, Iterator
from typing import BinaryIO

from isoloss.experiments.datasets.errors import DataError

# CIFAR-10's archive: 8 members of at most 31 MB, together 186 MB.
_MOST_MEMBERS = 64
_MOST_MEMBER_BYTES = 2**26
_MOST_BYTES = 2**28


class _TooLarge(Exception):  # noqa: N818
    pass


class _Bounded:
    """A stream that refuses to give more than an archive of this kind can hold."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self._left = _MOST_BYTES
        self.ended = False

    def read(self, count: int) -> bytes:
        if self.ended:
            # tarfile would go on skipping through nothing for the terabytes a header can claim.
            raise EOFError("it ends within a member")
        data = self._stream.read(min(count, self._left + 1))
        self.ended = not data
        self._left -= len(data)
        if self._left < 0:
            raise _TooLarge
        return data


def read_members(
    stream: BinaryIO, wanted: Collection[str], name: str
) -> Iterator[tuple[str, bytes]]:
    """Read regular members of a tar.gz one after the other, in the archive's order.

    Args:
        stream: The archive, from its start.
        wanted: Exact names of the members; all others are passed over.
        name: The archive's name, for errors.

    Yields:
        A member's name and content. All wanted members have come once when the iterator ends.

    Raises:
        DataError: The archive is damaged, lacks a member, has one twice or as a link, or would
            unpack to more than 256 MiB.
    """
    left = set(wanted)
    members = _members(stream, wanted, name)
    while True:
        # Only the reading is guarded: what the caller does with a member raises its own errors.
        try:
            member = next(members, None)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise _broken(name, f"it is damaged ({error})") from error
        except (ValueError, OverflowError, RecursionError) as error:  # tarfile on odd headers
            raise _broken(name, "a header in it is damaged") from error
        except _TooLarge as error:
            raise _broken(name, f"it would unpack to more than {_MOST_BYTES} bytes") from error
        if member is None:
            break
        if member[0] not in left:
            raise _broken(name, f"it has {member[0]} twice")
        left.remove(member[0])
        yield member
    if left:
        raise _broken(name, f"it lacks {', '.join(sorted(left))}")


def _members(stream: BinaryIO, wanted: Collection[str], name: str) -> Iterator[tuple[str, bytes]]:
    with gzip.GzipFile(fileobj=stream, mode="rb") as unzipped:
        bounded = _Bounded(unzipped)
        # As a stream ("r|"): no header can make tarfile jump backwards.
        with tarfile.open(fileobj=bounded, mode="r|") as tar:  # pyright: ignore
            for count, member in enumerate(tar):
                if count >= _MOST_MEMBERS:
                    raise _broken(name, f"it has more than {_MOST_MEMBERS} members")
                if member.name not in wanted:
                    continue
                content = tar.extractfile(member) if _is_plain(member) else None
                if content is None:
                    raise _broken(name, f"{member.name} in it is not a regular file of usual size")
                data = content.read()
                if len(data) != member.size:
                    raise _broken(name, f"{member.name} in it is cut off")
                yield member.name, data
        while not bounded.ended:  # to the end, where gzip compares its checksum
            bounded.read(2**16)


def _is_plain(member: tarfile.TarInfo) -> bool:
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    return plain and 0 < member.size <= _MOST_MEMBER_BYTES


def _broken(name: str, why: str) -> DataError:
    return DataError(f"{name} is not the archive of CIFAR-10: {why}; fetch it again")
