"""Two places that hold a checkpoint each, written in turn, so that one is whole whatever happens.

A slot is complete in itself: `manifest.json` names the files it consists of, with their checksums,
and is written last. Points once written stay in their file; a checkpoint adds what is new.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from isoloss.files import (
    DamagedError,
    ResultsError,
    Stamp,
    read_json,
    read_table,
    read_tensors,
    write_json,
    write_table,
    write_tensors,
)
from isoloss.storage import remove
from isoloss.store.quarantine import quarantine

MANIFEST = "manifest.json"
_FILE = re.compile(r"(state|rows|points)-\d{1,12}\.(safetensors|parquet)")


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds.

    Attributes:
        tree: What JSON can hold.
        storages: Tensors that are written anew every time, by name.
        rows: Rows of a table, written anew every time.
        points: Tensors that never change, by number; only new ones are written.
    """

    tree: Any
    storages: Mapping[str, Tensor]
    rows: Sequence[Mapping[str, Any]] = ()
    points: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])


class Slots:
    """A checkpoint on disk.

    Args:
        folder: Where the slots `a` and `b` are.
        rescue: Folder in whose `quarantine` goes what is damaged.
    """

    def __init__(self, folder: Path, rescue: Path) -> None:
        self.folder = folder
        self.damage: list[str] = []
        self._rescue = rescue
        self._slots = [_Slot(folder / name) for name in ("a", "b")]

    def load(self) -> Content | None:
        """The newest checkpoint that is whole; what is not goes into quarantine.

        Returns:
            The checkpoint; None where there is none. `damage` says what was wrong.

        Raises:
            ResultsError: A checkpoint is of a newer format.
        """
        for slot in self._slots:
            try:
                slot.open()
            except DamagedError as error:
                self.damage.append(f"{error}")
                quarantine(slot.folder, self._rescue)
                slot.clear()
        self._slots.sort(key=lambda slot: slot.number)
        newest = self._slots[-1]
        return newest.read() if newest.number else None

    def save(self, content: Content) -> None:
        """Write a checkpoint over the older of the two.

        Args:
            content: What to hold.
        """
        older, newer = self._slots
        older.write(content, newer.number + 1)
        self._slots = [newer, older]


class _Slot:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clear()

    def clear(self) -> None:
        self.number = 0
        self._manifest: dict[str, Any] = {}
        self._files: dict[str, Stamp] = {}
        self._points: dict[int, str] = {}

    def open(self) -> None:
        """Learn what is there, and check every byte of it."""
        self.clear()
        file = self.folder / MANIFEST
        if not any(found.name[0] != "." for found in self.folder.glob("*")):
            return
        manifest = read_json(file)
        try:
            files = {name: Stamp(**stamp) for name, stamp in manifest["files"].items()}
            points = {int(number): name for number, name in manifest["points"].items()}
            number = int(manifest["number"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"{file} is damaged: {error}") from error
        for name, stamp in files.items():
            if not _FILE.fullmatch(name):
                raise DamagedError(
                    f"{file} is damaged: {name!r} is not a name of a checkpoint's file"
                )
            stamp.check(self.folder / name)
        self.number, self._files, self._points = number, files, points
        self._manifest = manifest

    def read(self) -> Content:
        tensors = {
            name: read_tensors(self.folder / name, stamp)
            for name, stamp in self._files.items()
            if name.endswith(".safetensors")
        }
        try:
            rows: list[Any] = []
            if "rows" in self._manifest:
                name = self._manifest["rows"]
                rows = read_table(self.folder / name, self._files[name]).to_dict("records")
            return Content(
                tree=self._manifest["tree"],
                storages=tensors[self._manifest["state"]],
                rows=rows,
                points={k: tensors[name][str(k)] for k, name in self._points.items()},
            )
        except KeyError as error:
            raise ResultsError(
                f"{self.folder} does not hold {error}; call with --restart"
            ) from error

    def write(self, content: Content, number: int) -> None:
        if not self._manifest:  # from now on a slot without one is damaged
            write_json(self.folder / MANIFEST, {"number": 0, "files": {}, "points": {}})
        # names are never used twice, so that what the manifest on disk names stays as it is
        state = f"state-{number}.safetensors"
        files = {state: write_tensors(self.folder / state, content.storages)}
        manifest: dict[str, Any] = {"number": number, "state": state, "tree": content.tree}
        if content.rows:
            rows = f"rows-{number}.parquet"
            files[rows] = write_table(self.folder / rows, pd.DataFrame(content.rows))
            manifest["rows"] = rows
        points = {k: name for k, name in self._points.items() if k in content.points}
        new = [k for k in content.points if k not in points]
        if new:
            name = f"points-{number}.safetensors"
            tensors = {str(k): content.points[k] for k in new}
            files[name] = write_tensors(self.folder / name, tensors)
            points.update(dict.fromkeys(new, name))
        files.update({name: self._files[name] for name in points.values() if name in self._files})
        manifest["points"] = {str(k): name for k, name in points.items()}
        manifest["files"] = {name: asdict(stamp) for name, stamp in files.items()}
        write_json(self.folder / MANIFEST, manifest)
        self.number, self._manifest, self._files, self._points = number, manifest, files, points
        self._sweep()

    def _sweep(self) -> None:
        """Delete what the manifest does not name."""
        keep = {MANIFEST, *self._files}
        remove(*(file for file in self.folder.iterdir() if file.name not in keep))
