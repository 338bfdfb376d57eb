"""Whether the end of a walk depends on its start.

Phase 1 of an experiment from so many starts, on the same training set. From each, a walk at the
level of seed 0's, in float64, to a KKT residual of 1e-3. With mu its equivalent penalty there,
L + mu R is minimized from the same start by SciPy's L-BFGS-B, to 1e-3 of the largest slope of mu R.

    python benchmarks/ends.py [--experiments IRIS_FF MPG_FF] [--starts 20] [--out FOLDER]

prints a table in Markdown, and writes FOLDER/NAME/ends.csv, a row per start.
"""

from __future__ import annotations

import argparse
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.stats import spearmanr

from isoloss import Problem, Stop, experiments, traverse


def decayed(problem: Problem, start: torch.Tensor, penalty: float) -> torch.Tensor:
    """Where weight decay with a penalty on all parameters leads from a start."""

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, grad = problem.loss_and_grad(torch.from_numpy(flat))
        return loss.item() + penalty * (flat @ flat), grad.numpy() + 2 * penalty * flat

    size = start.abs().max().item()
    settings = {"maxiter": 10_000, "maxfun": 10_000, "maxcor": 40, "ftol": 0.0}
    settings["gtol"] = 1e-3 * 2 * penalty * size
    found = minimize(objective, start.numpy(), jac=True, method="L-BFGS-B", options=settings)
    return torch.from_numpy(found.x)


def end(name: str, level: float, seed: int) -> dict[str, Any]:
    """A row: the end of one walk, and of weight decay with its penalty."""
    torch.set_num_threads(1)
    start = experiments.get(name).start(seed, dtype=torch.float64)
    problem, test = start.problem, start.probes["test"]
    stop = Stop(evaluations=5_000, kkt_residual=1e-3, gain=0)
    path = traverse(problem, level=level, stop=stop, check=False, progress=False)
    walked = path.steps.iloc[-1]
    penalty, regularizer = float(walked["equivalent_penalty"]), float(walked["regularizer"])
    theta = decayed(problem, problem.current(), penalty)
    loss, grad = problem.loss_and_grad(theta)
    pull = 2 * penalty * theta
    left = ((grad + pull).norm() / pull.norm()).item()
    loss, square = loss.item(), theta.square().sum().item()
    last = path.points[-1]
    return {
        "seed": seed,
        "outcome": path.outcome.value,
        "evaluations": int(walked["evaluations"]),
        "loss": float(walked["loss"]),
        "regularizer": regularizer,
        "penalty": penalty,
        "test_loss": test.loss(last).item(),
        "objective": float(walked["loss"]) + penalty * regularizer,
        "decay_loss": loss,
        "decay_regularizer": square,
        "decay_test_loss": test.loss(theta).item(),
        "decay_objective": loss + penalty * square,
        "decay_gradient": left,  # as a share of that of mu R
    }


def ends(name: str, starts: int) -> pd.DataFrame:
    """The rows of all starts."""
    level = experiments.get(name).start(0, dtype=torch.float64).problem
    row = partial(end, name, level.loss(level.current()).item())
    with get_context("spawn").Pool() as pool:
        return pd.DataFrame(pool.map(row, range(starts), chunksize=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", nargs="+", default=["IRIS_FF", "MPG_FF"])
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    print("| experiment | starts | R | test loss | rank correlation | decay lower | L of decay |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in given.experiments:
        table = ends(name, given.starts)
        if given.out is not None:
            (given.out / name).mkdir(parents=True, exist_ok=True)
            table.to_csv(given.out / name / "ends.csv", index=False)
        lower = (table["decay_objective"] < table["objective"] * (1 - 1e-4)).sum()
        more = table["decay_loss"] / table["loss"]
        spans = (
            f"{column.min():.4g} to {column.max():.4g}"
            for column in (table["regularizer"], table["test_loss"], more)
        )
        norm, test, share = spans
        rank = spearmanr(table["regularizer"], table["test_loss"])
        print(
            f"| {name} | {len(table)} | {norm} | {test} | {rank.statistic:.2f} "
            f"(p = {rank.pvalue:.2g}) | {lower} | {share} times |",
            flush=True,
        )


if __name__ == "__main__":
    main()
