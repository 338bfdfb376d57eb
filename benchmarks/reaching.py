"""Evaluations until the default walk is on a level below its start's, beside two L-BFGS methods.

Two trained networks: 3-6-1 tanh on a product of two inputs, float64, in a narrow valley after 400
steps of Adam, and 64-32-10 ReLU on scikit-learn's digits, float32, after 100. An evaluation is one
loss and gradient, the start's included. The walk has arrived once the loss is within 0.1 % of the
level; `torch.optim.LBFGS` (strong Wolfe) and SciPy's L-BFGS-B, with 40 pairs each as the walk has,
once it is at the level or has passed it.

    python benchmarks/reaching.py [--seeds 5] [--limit 2000]

writes a table in Markdown to standard output.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable

import torch
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from torch import Tensor, nn

from isoloss import SQP, Problem, Stop, traverse

SHARES = (0.95, 0.5, 0.1)
PAIRS = 40


class ArrivedError(Exception):
    """The level is reached, or the limit."""


class Counted:
    """Loss and gradient of a problem, until it is at a level or below."""

    def __init__(self, problem: Problem, level: float, limit: int) -> None:
        self.problem, self.level, self.limit = problem, level, limit
        self.used, self.arrived = 0, False

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        loss, grad = self.problem.loss_and_grad(theta)
        self.used += 1
        self.arrived = loss.item() <= self.level
        if self.arrived or self.used >= self.limit:
            raise ArrivedError
        return loss, grad


def trained(model: nn.Module, loss: str, data: tuple[Tensor, Tensor], steps: int) -> Problem:
    problem = Problem(model, loss, data)
    function = {"mse": nn.functional.mse_loss, "cross_entropy": nn.functional.cross_entropy}[loss]
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        adam.zero_grad()
        function(model(data[0]), data[1]).backward()
        adam.step()
    return problem


def narrow(seed: int) -> Problem:
    torch.manual_seed(seed)
    x = torch.randn(120, 3, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    return trained(model, "mse", (x, (x[:, :1] * x[:, 1:2]).tanh()), 400)


def digits(seed: int) -> Problem:
    torch.manual_seed(seed)
    known = load_digits()
    x, y = torch.tensor(known.data / 16, dtype=torch.float32), torch.tensor(known.target)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return trained(model, "cross_entropy", (x, y), 100)


def isoloss(problem: Problem, level: float, limit: int) -> int | None:
    method = SQP(memory=PAIRS, max_approach=limit)
    stop = Stop(steps=1, evaluations=limit)
    path = traverse(problem, level=level, method=method, stop=stop, check=False, progress=False)
    return int(path.steps["evaluations"][path.point_steps[0]]) if path.point_steps else None


def torchs(problem: Problem, level: float, limit: int) -> int | None:
    theta, counted = problem.current().requires_grad_(), Counted(problem, level, limit)

    def closure() -> Tensor:
        loss, theta.grad = counted(theta.detach())
        return loss

    most = {"max_iter": limit, "max_eval": limit, "tolerance_grad": 0, "tolerance_change": 0}
    lbfgs = torch.optim.LBFGS([theta], history_size=PAIRS, line_search_fn="strong_wolfe", **most)
    with contextlib.suppress(ArrivedError):
        lbfgs.step(closure)
    return counted.used if counted.arrived else None


def scipys(problem: Problem, level: float, limit: int) -> int | None:
    theta, counted = problem.current(), Counted(problem, level, limit)

    def evaluate(flat: object) -> tuple[float, object]:
        loss, grad = counted(torch.as_tensor(flat).to(theta))
        return loss.item(), grad.double().numpy()

    options = {"maxcor": PAIRS, "maxiter": limit, "maxfun": limit, "ftol": 0, "gtol": 0}
    start = theta.double().numpy()
    with contextlib.suppress(ArrivedError):
        minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options)
    return counted.used if counted.arrived else None


WAYS: dict[str, Callable[[Problem, float, int], int | None]] = {
    "`sqp`": isoloss,
    "`torch.optim.LBFGS`": torchs,
    "SciPy's L-BFGS-B": scipys,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}; evaluations, one number a seed, - where beyond the limit\n")
    print(f"| network | of the start's loss | {' | '.join(WAYS)} |")
    print("| --- | --- | --- | --- | --- |")
    for make in (narrow, digits):
        problems = [make(seed) for seed in range(arguments.seeds)]
        for share in SHARES:
            cells: list[str] = []
            for reach in WAYS.values():
                starts = [problem.loss(problem.current()).item() for problem in problems]
                pairs = zip(problems, starts, strict=True)
                found = [reach(problem, share * loss, arguments.limit) for problem, loss in pairs]
                cells.append(" ".join("-" if one is None else f"{one:,}" for one in found))
            print(f"| {make.__name__} | {share} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
