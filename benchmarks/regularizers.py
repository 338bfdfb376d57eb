"""Evaluations that `sqp` needs for each regularizer.

A 4-10-3 network (83 parameters) is trained on Iris by Adam, then walked on its level set toward a
smaller R for every regularizer available by name, and for a few others; or, with `--experiment`,
what phase 1 of an experiment ends with, in its own float32. Counted: evaluations of L
and its gradient until R is within one part in a hundred of the smallest value seen, until the KKT
residual is 1e-1 and 1e-2, and at the end. What a regularizer made of derivatives costs on top is a
fixed multiple of these; it is left out of the counts and of the limit, and has a column of its own.

    python benchmarks/regularizers.py [--evaluations 600] [--memory M] [--only NAME ...]
    python benchmarks/regularizers.py --experiment MPG_FF --only l1 group_lasso nuclear_norm
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from sklearn.datasets import load_iris
from torch import Tensor, nn

import isoloss

NAMES = (
    "squared_norm",
    "l1",
    "group_lasso",
    "nuclear_norm",
    "path_norm",
    "hessian_trace",
    "gradient_norm",
    "input_gradient",
    "adaptive_sharpness",
)


def quartic(parameters: dict[str, Tensor]) -> Tensor:
    return torch.stack([(p**4).sum() for p in parameters.values()]).sum()


def trained() -> isoloss.Problem:
    features, classes = load_iris(return_X_y=True)
    inputs = torch.tensor((features - features.mean(0)) / features.std(0))
    targets = torch.tensor(classes)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return isoloss.Problem(model, "cross_entropy", (inputs, targets), chunk_size=150)


def cost(regularizer: Any, problem: isoloss.Problem) -> int:
    """What one value and gradient of R counts, beside the evaluation of L at the same point."""
    made = isoloss.regularizers.get_regularizer(regularizer, problem)
    before = problem.evaluations
    made.value_and_grad(problem.current())
    return problem.evaluations - before


def count(evaluations: pd.Series, reached: pd.Series) -> str:
    return f"{evaluations[reached].iloc[0]}" if reached.any() else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=600)
    parser.add_argument("--memory", type=int, help="40 or 120 by default, as SQP chooses")
    parser.add_argument("--experiment", metavar="NAME", help="such as MPG_FF, seed 0")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="as in the first column")
    arguments = parser.parse_args()
    limit, method = arguments.evaluations, isoloss.SQP(memory=arguments.memory)
    torch.set_num_threads(1)
    problem = trained()
    if arguments.experiment:
        problem = isoloss.experiments.get(arguments.experiment).start(seed=0).problem
    chosen: list[str | Callable[..., Any] | Any] = [
        *NAMES,
        isoloss.SquaredNorm(without_biases=True),
        isoloss.weighted_sum((1.0, "squared_norm"), (0.1, "l1")),
        isoloss.HessianTrace(probes=5),
        isoloss.AdaptiveSharpness(kind="average"),
        quartic,
    ]
    level = problem.loss(problem.current()).item()
    dtype = str(problem.dtype).removeprefix("torch.")
    print(f"level {level:.4g}, {problem.size} parameters, {dtype}, memory {method.memory}, at most")
    print(f"{limit} evaluations of L; torch {torch.__version__}, {platform.machine()}\n")
    print(
        "| regularizer | R | within 1 % | KKT 1e-1 | 1e-2 | evaluations of L | KKT residual | "
        "outcome | R costs |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |")
    rows = []
    for one in chosen:
        label = isoloss.regularizers.get_regularizer(one, problem).name
        label += ", 5 probes" if isinstance(one, isoloss.HessianTrace) else ""
        label += ", average" if getattr(one, "kind", "") == "average" else ""
        if arguments.only and label not in arguments.only:
            continue
        extra = cost(one, problem)
        path = isoloss.traverse(
            problem,
            regularizer=one,
            method=method,
            stop=isoloss.Stop(evaluations=limit * (1 + extra), gain=0),
            progress=False,
        )
        steps = path.steps
        values, residuals = steps["regularizer"], steps["kkt_residual"]
        of_loss = steps["evaluations"] // (1 + extra)
        print(
            f"| {label} | {values.iloc[0]:.4g} → {values.iloc[-1]:.4g} | "
            f"{count(of_loss, values <= values.min() + 0.01 * abs(values.min()))} | "
            f"{count(of_loss, residuals <= 1e-1)} | {count(of_loss, residuals <= 1e-2)} | "
            f"{of_loss.iloc[-1]} | {residuals.iloc[-1]:.1g} | {path.outcome.value} | {extra} |",
            flush=True,
        )
        rows.append({"regularizer": label, "evaluations": int(of_loss.iloc[-1])})
    print(f"\n{json.dumps(rows)}")


if __name__ == "__main__":
    main()
