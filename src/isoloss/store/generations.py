"""Two generations of a checkpoint in a folder, of which one is whole whatever happens.

`a` and `b` are written in turn, each atomically: a line of JSON, with the SHA-256 of itself and of
all that belongs to the generation, and after it what `torch.save` wrote. Vectors that never change
lie in `points.bin`: new ones are appended, or take the room of those that neither names any more.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoloss.files import (
    DamagedError,
    Stamp,
    atomically,
    reading,
    sealed,
    sync,
    unsealed,
    writing,
)
from isoloss.store.lock import quarantine

SLOTS: tuple[str, ...] = ("a", "b")
POINTS_FILE = "points.bin"


@dataclass(frozen=True)
class Block:
    """Where a vector lies in `points.bin`, counted in vectors, and the SHA-256 of its bytes."""

    index: int
    sha256: str


@dataclass(frozen=True)
class Generation:
    """What was kept at one time; number 0 stands for nothing."""

    number: int = 0
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])  # what JSON can hold
    payload: bytes = b""
    points: Mapping[int, bytes] = field(default_factory=dict[int, bytes])


class Generations:
    """A checkpoint on disk; what is damaged goes into the `quarantine` of the folder `rescue`."""

    def __init__(self, folder: Path, rescue: Path) -> None:
        self.folder = folder
        self.damage: list[str] = []  # a sentence each
        self._rescue = rescue
        self._points = folder / POINTS_FILE
        self._size = 0  # bytes of a vector
        self._torn = False
        self._numbers = dict.fromkeys(SLOTS, 0)
        self._blocks: dict[str, dict[int, Block]] = {slot: {} for slot in SLOTS}

    def load(self) -> Generation | None:
        """The newest generation that is whole."""
        there = [slot for slot in SLOTS if (self.folder / slot).exists()]
        found: dict[str, Generation] = {}
        read: dict[int, bytes] = {}
        for slot in there:
            try:
                found[slot] = self._read(slot, read)
            except DamagedError as error:
                self.damage.append(str(error))
                quarantine(self.folder / slot, self._rescue)
        newest = max(found.values(), key=lambda one: one.number, default=Generation())
        if newest.number or self.damage or (not there and self._points.exists()):
            lost = [slot for slot in SLOTS if slot not in there]  # once there is one, both are
            self.damage += [f"{self.folder / slot} is missing" for slot in lost]
        if self.damage and newest.number:
            if self._torn:  # some of it may be needed
                copy = self.folder / f"{POINTS_FILE}.damaged"
                with writing(copy):
                    shutil.copyfile(self._points, copy)
                    sync(copy)
                quarantine(copy, self._rescue)
            for slot in SLOTS:
                if slot not in found:
                    self._write(slot, Generation(), {})
        elif self.damage:
            quarantine(self._points, self._rescue)
        return newest if newest.number else None

    def save(self, about: Mapping[str, Any], payload: bytes, points: Mapping[int, Tensor]) -> None:
        """Write a generation over the older one; of the points, by number, those that are new."""
        older, newer = sorted(SLOTS, key=lambda slot: self._numbers[slot])
        if not self._numbers[newer]:
            self._write(newer, Generation(), {})
        used = {block.index for blocks in self._blocks.values() for block in blocks.values()}
        free = (index for index in itertools.count() if index not in used)
        blocks: dict[int, Block] = {}
        new: dict[int, bytes] = {}
        for number, point in points.items():
            if number in self._blocks[newer]:
                blocks[number] = self._blocks[newer][number]
                continue
            content = bytes_of(point)
            self._size = len(content)
            blocks[number] = Block(next(free), hashlib.sha256(content).hexdigest())
            new[blocks[number].index] = content
        if new:
            write_blocks(self._points, new)
        self._write(older, Generation(self._numbers[newer] + 1, about, payload), blocks)

    def _write(self, slot: str, made: Generation, blocks: dict[int, Block]) -> None:
        content = {
            "number": made.number,
            "about": made.about,
            "size": self._size,
            "points": {str(number): asdict(block) for number, block in blocks.items()},
            "payload": asdict(Stamp.of(made.payload)),
        }
        line = sealed(content, indent=None).encode()

        def write(part: Path) -> None:
            with part.open("wb") as opened:
                opened.write(line)
                opened.write(made.payload)

        atomically(self.folder / slot, write)
        self._numbers[slot], self._blocks[slot] = made.number, blocks

    def _read(self, slot: str, read: dict[int, bytes]) -> Generation:
        """A generation, once every byte of it is found to be whole; `read` holds vectors read."""
        file = self.folder / slot
        with reading(file):
            line, _, payload = file.read_bytes().partition(b"\n")
            header = unsealed(file, line.decode("utf-8") + "\n", indent=None)
            Stamp(**header["payload"]).check(file, payload)
            number, about, size = header["number"], header["about"], header["size"]
            blocks = {int(k): Block(**block) for k, block in header["points"].items()}
        points: dict[int, bytes] = {}
        for k, block in blocks.items():
            if block.index not in read:
                with reading(self._points), self._points.open("rb") as opened:
                    opened.seek(block.index * size)
                    read[block.index] = opened.read(size)
            points[k] = read[block.index]
            if hashlib.sha256(points[k]).hexdigest() != block.sha256:
                self._torn = True
                raise DamagedError(
                    f"{self._points} was changed or cut after it was written: the checksum of the "
                    f"point at step {k} differs"
                )
        self._numbers[slot], self._blocks[slot], self._size = number, blocks, size
        return Generation(number, about, payload, points)


def bytes_of(point: Tensor) -> bytes:
    """The bytes of a vector's numbers."""
    return point.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def write_blocks(file: Path, blocks: Mapping[int, bytes]) -> None:
    """Write vectors at their places in a file, and make that last."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        new = not file.exists()
        with file.open("r+b" if not new else "xb") as opened:
            for index, content in blocks.items():
                opened.seek(index * len(content))
                opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        if new:
            sync(file.parent)
