"""Logs of the reference that were damaged: each is skipped with a sentence, the others are read."""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tests.fuzz.battery import Findings, attempt
from tests.test_reference import logged

from isoloss.reference import import_reference

NAMES = ("IRIS_FF/logs_IRIS_FF_exp_2.npz", "L2_IRIS_FF/logs_regpenidx_3_expidx_1.npz")


def try_logs(scratch: Path, tries: int, seed: int) -> Findings:
    """Import folders of a whole log and a damaged one."""
    found, rng = Findings(), random.Random(seed)
    of_decay = {
        "SEED": np.array([3]), "weights": logged()["weights_phase1"],
        **dict.fromkeys(("loss", "val_loss", "categorical_accuracy", "val_categorical_accuracy"),
                        np.linspace(1, 0.5, 4)),
    }  # fmt: skip
    whole = dict(zip(NAMES, (logged(), of_decay), strict=True))
    for name in NAMES:
        (scratch / name).parent.mkdir(parents=True)
    (scratch / "IRIS_FF/logs_IRIS_FF_exp_1.npz").write_bytes(_saved(whole[NAMES[0]]))
    for k in range(tries):
        name, out = NAMES[k % 2], scratch / "out"
        arrays, how = dict(whole[name]), rng.choice(("bytes", "numbers"))
        if how == "numbers":
            which = rng.choice(sorted(arrays))
            arrays[which] = _numbers(rng, arrays[which])
        content = _saved(arrays)
        (scratch / name).write_bytes(content if how == "numbers" else _bytes(rng, content))
        attempt(lambda out=out: _imported(scratch, out), f"{k}: {how} of {name}", found)
        (scratch / name).unlink()
        shutil.rmtree(out, ignore_errors=True)
    return found


def _imported(folder: Path, out: Path) -> None:
    found = import_reference(folder, out)
    read = len(found.paths["IRIS_FF"]) + len(found.decay.get("IRIS_FF", ()))
    assert read + len(found.skipped) == 2
    assert not any("\n" in sentence for sentence in found.skipped)


def _saved(arrays: dict[str, Any]) -> bytes:
    opened = io.BytesIO()
    np.savez(opened, **arrays)
    return opened.getvalue()


def _numbers(rng: random.Random, right: Any) -> Any:
    """Another array than there was."""
    array = np.asarray(right)
    if array.dtype.kind not in "iuf" or rng.random() < 0.2:
        return np.full(
            3, rng.choice((None, "a", 1j, True, 2**63)), dtype=rng.choice((None, object))
        )
    ways = (
        lambda: array[:-1], lambda: array[:0], lambda: array[None], lambda: array.ravel()[0],
        lambda: -array, lambda: array * np.nan, lambda: array + 1, lambda: array * 1e300,
        lambda: array.astype(np.int64), lambda: array.astype(complex), lambda: array.astype(">f8"),
        lambda: array.astype(np.float16), lambda: array.astype(str), lambda: array[::-1],
        lambda: np.asfortranarray(array), lambda: array.astype(bool), lambda: np.zeros((0, 3)),
    )  # fmt: skip
    with np.errstate(all="ignore"):
        return rng.choice(ways)()


def _bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes changed anywhere, or where zip and NumPy say what follows; or fewer, or more."""
    changed = bytearray(content)
    how = rng.choice(("any", "end", "header", "header", "cut", "longer", "zeros"))
    marks = [k for k in range(0, len(content), 64) if b"NUMPY" in content[k : k + 70]]
    for _ in range(rng.choice((1, 1, 2, 8))):
        match how:
            case "header":
                at = rng.choice(marks) + rng.randrange(260)
            case "end":
                at = len(content) - 1 - rng.randrange(min(2000, len(content)))
            case _:
                at = rng.randrange(len(content))
        changed[at % len(content)] = rng.choice((0, 1, 255, 0x39, 0x30, 0x5B, rng.randrange(256)))
    if how == "cut":
        del changed[rng.randrange(len(changed)) :]
    elif how == "longer":
        changed[len(changed) // 2 : len(changed) // 2] = rng.randbytes(100)
    elif how == "zeros":
        at = rng.randrange(len(changed))
        changed[at : at + 600] = bytes(len(changed[at : at + 600]))
    return bytes(changed)
