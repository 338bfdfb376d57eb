"""Results folders with made-up walks, quick to write and with known numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pandas as pd
import torch

from isoloss import Outcome, Path
from isoloss.store import run_folder
from isoloss.store.folder import Stack, begin, save_decay, save_failure, save_walk

LEVEL = 0.25
FAILURE = "out of memory in <script>document.title = 'taken over'</script> & more"


def made_path(length=40, seed=0, method="sqp", outcome=Outcome.CONVERGED, n=60) -> Path:
    """A walk around a spiral, R falling from 300 + seed."""
    generator = np.random.default_rng(seed)
    t = np.linspace(0, 3, length)
    turn = np.linalg.qr(generator.normal(size=(max(n, 6), 6)))[0][:n]
    curve = np.stack([8 - 4 * t, 3 * np.cos(2 * t), 2 * np.sin(2 * t), t**2, np.cos(5 * t), t], 1)
    points = curve @ turn.T + generator.normal(size=n)
    steps = pd.DataFrame(
        {
            "step": np.arange(length),
            "kind": ["start"] + [{"paper": "predict"}.get(method, method)] * (length - 1),
            "evaluations": 1 + 2 * np.arange(length),
            "seconds": 0.1 * np.arange(length),
            "loss": LEVEL,
            "level_error": 0.0,
            "regularizer": (300.0 + seed) * np.exp(-t),
            "angle_degrees": 90 + 29 * t,
            "kkt_residual": np.exp(-t),
            "equivalent_penalty": 1e-3,
            "step_length": 0.1,
            "arc_length": 0.1 * np.arange(length),
            "test_loss": 0.4 + 0.01 * seed + 0.05 * np.cos(3 * t),
            "test_metric": 0.9 + 0.01 * np.sin(t),
        }
    )
    return Path(
        steps,
        torch.from_numpy(points.astype(np.float32)),
        list(range(length)),
        LEVEL,
        outcome,
        f"Said of {method} {seed}.",
        method,
        "squared_norm",
        {"weight": (n,)},
    )


def write_run(out: FilePath, path: Path, index: int, experiment: str = "IRIS_FF") -> None:
    """Write a walk as the commands would."""
    folder = run_folder(out, experiment, path.method, index)
    config = {"experiment": experiment, "seed": 7 + index, "method": {"name": path.method}}
    begin(folder, config, {"isoloss": "0.0"})
    save_walk(folder, path)


def decay_ends(index: int, n: int = 60) -> torch.Tensor:
    """Networks of weight decay, a row for each of two penalties."""
    return torch.randn(2, n, generator=torch.Generator().manual_seed(index))


def write_decay(out: FilePath, index: int, lost: int = -1) -> None:
    """Weight decay with penalties 0 and 1e-3 as the command would write it."""
    rows = [
        {
            "epoch": epoch, "penalty": penalty, "train_loss": 0.2 + penalty, "test_metric": 0.8,
            "test_loss": 0.5 - 100 * penalty + index / 50, "penalized_test_loss": 0.6,
            "squared_norm": 10.0 + index, "squared_norm_weights": 9.0,
        }
        for epoch in (2, 4)
        for penalty in (0.0, 1e-3)
    ]  # fmt: skip
    folder, ends = run_folder(out, "IRIS_FF", None, index, "decay"), decay_ends(index)
    begin(folder, {"experiment": "IRIS_FF", "seed": 7 + index}, {})
    stack = Stack(pd.DataFrame(rows), ends, torch.tensor([-1, lost]))
    save_decay(folder, stack, None, start=ends[0].clone(), indices=torch.arange(3))


def made_results(out: FilePath) -> FilePath:
    """Three walks by sqp and one by paper, one failed and one not finished; weight decay."""
    for k in range(3):
        outcome = Outcome.STALLED if k == 2 else Outcome.CONVERGED
        write_run(out, made_path(40 + 5 * k, k, outcome=outcome), k)
    write_run(out, made_path(30, 5, "paper", Outcome.STEP_LIMIT), 0)
    for k, fate in ((3, "failed"), (4, "begun")):
        folder = run_folder(out, "IRIS_FF", "sqp", k)
        begin(folder, {"seed": 7 + k}, {})
        if fate == "failed":
            save_failure(folder, FAILURE)
    write_decay(out, 0)
    write_decay(out, 1, lost=3)
    return out


@contextmanager
def undrawn(*formats: str) -> Iterator[None]:
    """Every picture saved is a dot: a real one takes a second, for tests that look at none.

    With formats given, only pictures of these: without `"pdf"` all is drawn once instead of twice.
    """
    import pytest
    from matplotlib.figure import Figure
    from PIL import Image

    real = Figure.savefig

    def save(figure: Figure, file: Any, **how: Any) -> None:
        if not formats or how.get("format") in formats:
            Image.new("RGB", (1, 1)).save(file, format="png")
        else:
            real(figure, file, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield
