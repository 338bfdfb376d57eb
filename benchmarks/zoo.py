"""How fast `sqp` walks networks of the kinds people have, beside rivals from the same starts.

Eight networks of 10,000 to 50,000 parameters on scikit-learn's digits, a page of text and made-up
sequences, trained by Adam in seconds. From each start: the squared norm R after 50, 150 and 400
evaluations, as a share of the start's, evaluations an accepted step, and the KKT residual at the
end. An evaluation is one full-batch loss and gradient, rejected trials included. With --rivals,
the least R of points within 1 % of the level, for

- an augmented Lagrangian, its subproblems solved by SciPy's L-BFGS-B with 20 pairs;
- full-batch SGD with momentum and Adam on L + penalty R, the best of three penalties and two
  learning rates at each count, each brought onto the level by one correction along the gradient.

    python benchmarks/zoo.py [--networks NAME ...] [--seeds 0 1 2] [--evaluations 400]
                             [--rivals] [--memory 40] [--cache FOLDER]

prints a table in Markdown. Trained starts are kept in the cache, by default below the system's
folder for temporary files, and are taken from there by later calls.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from isoloss import SQP, Problem, Stop, traverse
from zoo_networks import NETWORKS, trained

MARKS = (50, 150, 400)
NEAR = math.log(1.01)
"""|log(L / c)| up to which a rival's point counts as on the level."""

# ---------------------------------------------------------------- rivals


class DoneError(Exception):
    """The evaluations are used up."""


class Watched:
    """Log L / c, its gradient and R, with the least R on the level after so many evaluations."""

    def __init__(self, problem: Problem, limit: int) -> None:
        self.problem, self.limit, self.used = problem, limit, 0
        theta = problem.current()
        self.level = problem.loss(theta).item()
        self.start = self.least = theta.square().sum().item()
        self.least_after: list[float] = []

    def __call__(self, theta: Tensor) -> tuple[float, Tensor]:
        if self.used >= self.limit:
            raise DoneError
        loss, grad = self.problem.loss_and_grad(theta)
        self.used += 1
        self.note(theta, loss.item())
        self.least_after.append(self.least)
        return math.log(max(loss.item(), 1e-30) / self.level), grad / loss

    def note(self, theta: Tensor, loss: float) -> None:
        if loss > 0 and abs(math.log(loss / self.level)) <= NEAR:
            self.least = min(self.least, theta.square().sum().item())

    def shares(self) -> list[float]:
        return [self.least_after[min(mark, self.used) - 1] / self.start for mark in MARKS]


def augmented(problem: Problem, limit: int) -> list[float]:
    """R + lambda phi + rho phi^2 / 2 by L-BFGS-B, lambda and rho after every forty iterations."""
    watched = Watched(problem, limit)
    theta = problem.current()
    phi, a = watched(theta)
    price = max(-2 * (theta @ a / (a @ a)).item(), 0.0)
    rho, worst = 10 * watched.start, math.inf

    def merit(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal phi
        here = torch.as_tensor(flat).to(theta)
        phi, a = watched(here)
        value = here.square().sum().item() + price * phi + rho * phi * phi / 2
        return value, (2 * here + (price + rho * phi) * a).double().numpy()

    flat = theta.double().numpy()
    try:
        while True:
            flat = minimize(
                merit, flat, jac=True, method="L-BFGS-B", options={"maxiter": 40, "maxcor": 20}
            ).x
            merit(flat)
            price += rho * phi
            rho, worst = (rho if abs(phi) < 0.25 * worst else 4 * rho), abs(phi)
    except DoneError:
        return watched.shares()


def decayed(optimizer: Callable[..., Any], rates: tuple[float, ...]) -> Callable[..., list[float]]:
    """Full-batch weight decay, brought onto the level every 25 evaluations, which costs nothing."""

    def run(problem: Problem, limit: int) -> list[float]:
        found = []
        for price in (3, 30, 300):
            for rate in rates:
                watched = Watched(problem, limit)
                theta = problem.current()
                theta.grad = torch.zeros_like(theta)
                steps = optimizer([theta], lr=rate)
                for step in range(1, limit + 1):
                    phi, a = watched(theta)
                    if step % 25 == 0 and math.isfinite(phi):
                        corrected = theta - phi / (a @ a) * a
                        watched.note(corrected, problem.loss(corrected).item())
                        watched.least_after[-1] = watched.least
                    theta.grad = watched.level * (math.exp(min(phi, 50)) * a + 2 * theta / price)
                    steps.step()
                found.append(watched.shares())
        return [min(shares) for shares in zip(*found, strict=True)]

    return run


RIVALS = {
    "AL, L-BFGS": augmented,
    "SGD": decayed(lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), (1e-2, 1e-1)),
    "Adam": decayed(torch.optim.Adam, (1e-3, 1e-2)),
}

# ---------------------------------------------------------------- the table


def walked(problem: Problem, limit: int, memory: int | None) -> tuple[list[float], str, float, str]:
    """Shares of R, evaluations an accepted step, KKT residual, outcome."""
    method = SQP() if memory is None else SQP(memory=memory)
    stop = Stop(evaluations=limit, kkt_residual=1e-9, gain=0)
    path = traverse(problem, method=method, stop=stop, check=False, progress=False)
    steps = path.steps
    used, values = steps["evaluations"].to_numpy(), steps["regularizer"].to_numpy()
    shares = [values[used <= mark][-1] / values[0] for mark in MARKS]
    rate = used[-1] / max(steps["step"].iloc[-1], 1)
    outcome = "" if path.outcome.value == "evaluation_limit" else path.outcome.value
    return shares, f"{rate:.1f}", float(steps["kkt_residual"].iloc[-1]), outcome


def told(runs: list[list[float]], limit: int) -> str:
    """Medians over seeds at each count."""
    kept = [k for k, mark in enumerate(MARKS) if mark <= limit]
    return " ".join(f"{statistics.median(run[k] for run in runs):.3f}" for k in kept)


def lines(arguments: argparse.Namespace) -> Iterator[str]:
    rivals = RIVALS if arguments.rivals else {}
    names = ["network", "`sqp`", "evaluations a step", "KKT residual", *rivals]
    yield f"| {' | '.join(names)} |"
    yield f"|{' --- |' * len(names)}"
    for name in arguments.networks:
        problems = [trained(name, seed, arguments.cache) for seed in arguments.seeds]
        walks = [walked(problem, arguments.evaluations, arguments.memory) for problem in problems]
        shares = told([walk[0] for walk in walks], arguments.evaluations)
        residuals = " ".join(f"{walk[2]:.2g} {walk[3]}".strip() for walk in walks)
        cells = [name, shares, " ".join(walk[1] for walk in walks), residuals]
        for rival in rivals.values():
            runs = [rival(problem, arguments.evaluations) for problem in problems]
            cells.append(told(runs, arguments.evaluations))
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=max(MARKS))
    parser.add_argument("--memory", type=int, help="of `sqp`; its default where not given")
    parser.add_argument("--rivals", action="store_true")
    cache = Path(tempfile.gettempdir()) / "isoloss-zoo"
    parser.add_argument("--cache", type=Path, default=cache)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}; medians over seeds {arguments.seeds} of R after", end=" ")
    print(f"{MARKS} evaluations as a share of the start's\n")
    for line in lines(arguments):
        print(line, flush=True)


if __name__ == "__main__":
    main()
