"""Two generations of a checkpoint in a folder, of which one is whole whatever happens.

`a` and `b` are written by turns, each atomically: a line of JSON, with the SHA-256 of itself and of
all that belongs to the generation, and after it what `torch.save` wrote. Vectors that never change
lie in `points.bin`: new ones are appended, or take the room of those that neither names any more.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoloss.disk import (
    DamagedError,
    Stamp,
    atomically,
    open_plain,
    quarantine,
    read_bytes,
    reading,
    remove,
    sync,
    writing,
)
from isoloss.files import sealed, unsealed

SLOTS: tuple[str, ...] = ("a", "b")
POINTS_FILE = "points.bin"

Blocks = dict[int, tuple[int, str]]
"""Where vectors lie in `points.bin`, counted in vectors, and the SHA-256 of their bytes."""


@dataclass(frozen=True)
class Generation:
    """What was kept at one time; number 0 stands for nothing."""

    number: int = 0
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])  # what JSON can hold
    payload: bytes = b""
    points: Mapping[int, memoryview] = field(default_factory=dict[int, memoryview])


NOT_YET = Generation(about={"waiting": True})
"""In the other slot while the first of all generations is being written."""


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
        self._blocks: dict[str, Blocks] = {slot: {} for slot in SLOTS}

    def load(self) -> Generation | None:
        """The newest generation that is whole."""
        there = [slot for slot in SLOTS if (self.folder / slot).exists()]
        points = memoryview(b"")
        if self._points.exists():
            points = memoryview(read_bytes(self._points))
        found: dict[str, Generation] = {}
        for slot in there:
            try:
                found[slot] = self._read(slot, points)
            except DamagedError as error:
                self.damage.append(str(error))
                quarantine(self.folder / slot, self._rescue)
        newest = max(found.values(), key=lambda one: one.number, default=Generation())
        begun = there or self._points.exists()
        if self.damage or (begun and list(found.values()) != [NOT_YET]):
            lost = [slot for slot in SLOTS if slot not in there]  # once there is one, both are
            self.damage += [f"{self.folder / slot} is missing" for slot in lost]
        if self.damage and not newest.number:
            quarantine(self._points, self._rescue)
            remove(*(self.folder / slot for slot in found))  # begins as if there had been none
        elif self.damage:
            if self._torn:  # some of it may be needed
                quarantine(self._points, self._rescue, copy=True)
            for slot in set(SLOTS) - found.keys():
                self._write(slot, Generation(), {})
        return newest if newest.number else None

    def save(self, about: Mapping[str, Any], payload: bytes, points: Mapping[int, Tensor]) -> None:
        """Write a generation over the older one; of the points, by number, those that are new."""
        older, newer = sorted(SLOTS, key=lambda slot: self._numbers[slot])
        first = not self._numbers[newer]
        if first:
            self._write(newer, NOT_YET, {})
        used = {index for blocks in self._blocks.values() for index, _ in blocks.values()}
        free = (index for index in itertools.count() if index not in used)
        blocks: Blocks = {}
        new: dict[int, bytes] = {}
        for number, point in points.items():
            if number in self._blocks[newer]:
                blocks[number] = self._blocks[newer][number]
                continue
            content = point.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            self._size = len(content)
            blocks[number] = next(free), hashlib.sha256(content).hexdigest()
            new[blocks[number][0]] = content
        if new:
            write_blocks(self._points, new)
        self._write(older, Generation(self._numbers[newer] + 1, about, payload), blocks)
        if first:  # from now on, neither may be missing
            self._write(newer, Generation(), {})

    def _write(self, slot: str, made: Generation, blocks: Blocks) -> None:
        content = {
            "number": made.number,
            "about": made.about,
            "size": self._size,
            "points": blocks,
            "payload": asdict(Stamp.of(made.payload)),
        }
        whole = sealed(content, indent=None).encode() + made.payload
        atomically(self.folder / slot, lambda part: part.write_bytes(whole))
        self._numbers[slot], self._blocks[slot] = made.number, blocks

    def _read(self, slot: str, points: memoryview) -> Generation:
        """A generation, once every byte of it is found to be whole."""
        file = self.folder / slot
        with reading(file):
            line, _, payload = read_bytes(file).partition(b"\n")
            header = unsealed(file, line.decode("utf-8") + "\n", indent=None)
            Stamp(**header["payload"]).check(file, payload)
            number, size = header["number"], header["size"]
            blocks = {int(k): (index, digest) for k, (index, digest) in header["points"].items()}
        own = {k: points[index * size :][:size] for k, (index, _) in blocks.items()}
        for k, content in own.items():
            if hashlib.sha256(content).hexdigest() != blocks[k][1]:
                self._torn = True
                raise DamagedError(
                    f"{self._points} was changed or cut after it was written: the checksum of the "
                    f"point at step {k} differs"
                )
        self._numbers[slot], self._blocks[slot], self._size = number, blocks, size
        return Generation(number, header["about"], payload, own)


def write_blocks(file: Path, blocks: Mapping[int, bytes]) -> None:
    """Write vectors at their places in a file, and make that last."""
    with writing(file):
        new = not file.exists()
        with open_plain(file, "xb" if new else "r+b") as opened:
            for index, content in blocks.items():
                opened.seek(index * len(content))
                opened.write(content)
        sync(file)
        if new:
            sync(file.parent)
