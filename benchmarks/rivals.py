"""Evaluations that other methods need for what a walk does: least |theta|^2 at one training loss.

All start where phase 1 of an experiment ends, in float64, and minimize R = |theta|^2 under
phi = log(L / c) = 0, with one loss and gradient of the whole training set as the unit of cost.
Counted is every evaluation up to the first point with |phi| <= 1e-3 whose R is within 5 % or 1 % of
the least that any method found on that seed, or whose KKT residual is at most 1e-2 or 1e-3. Rivals
run with each of their settings on seed 0 and keep the best one on all others.

    python benchmarks/rivals.py [--experiments NAME ...] [--rivals NAME ...] [--seeds 3]

writes tables in Markdown to standard output, with the setting chosen and the largest |phi| on the
way to 1 %. cooper-optim and nlopt come with the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from scipy.optimize import NonlinearConstraint, minimize
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from isoloss import Problem, Record, Stop, experiments, traverse

BAND = 1e-3
ENDS = ("R within 5 %", "R within 1 %", "KKT 1e-2", "KKT 1e-3")


class Over(Exception):  # noqa: N818  # no error: converged, or the limit
    """The run is over."""


@dataclass
class Counted:
    """phi = log(L / c) with its gradient, and what every evaluation found."""

    problem: Problem
    level: float
    limit: int
    seen: list[tuple[float, float, float]] = field(default_factory=list)  # phi, R, KKT residual

    def __call__(self, theta: Tensor) -> tuple[float, Tensor]:
        if len(self.seen) >= self.limit:
            raise Over
        loss, grad = self.problem.loss_and_grad(theta)
        if not 0 < loss.item() < math.inf:
            raise Over
        phi, a, r = math.log(loss.item() / self.level), grad / loss, 2 * theta
        across = r - (r @ a) / (a @ a) * a
        self.seen.append((phi, (theta @ theta).item(), (across.norm() / r.norm()).item()))
        if abs(phi) <= BAND and self.seen[-1][2] <= 1e-3:
            raise Over
        return phi, a


def multiplier(theta: Tensor, a: Tensor) -> float:
    """The least-squares lambda of grad R + lambda grad phi = 0."""
    return -(2 * theta @ a).item() / (a @ a).item()


def lbfgs(
    function: Callable[[Tensor], tuple[float, Tensor]], theta: Tensor, steps: int, gtol: float = 0
) -> Tensor:
    """Where torch's L-BFGS with a strong Wolfe line search is after some steps."""
    leaf = theta.clone().requires_grad_()
    most = {"max_iter": steps, "max_eval": 10 * steps, "history_size": 40}
    small = {"tolerance_grad": gtol, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS([leaf], line_search_fn="strong_wolfe", **most, **small)

    def closure() -> Tensor:
        value, leaf.grad = function(leaf.detach())
        return torch.tensor(value, dtype=theta.dtype)

    optimizer.step(closure)
    return leaf.detach()


def augmented(counted: Counted, theta: Tensor, setting: tuple[float, int]) -> None:
    """Augmented Lagrangian: R + lambda phi + rho phi^2 / 2 by L-BFGS, lambda += rho phi."""
    weight, steps = setting
    price = max(multiplier(theta, counted(theta)[1]), 0.0)
    rho = weight * (theta @ theta).item()
    while True:

        def value(at: Tensor) -> tuple[float, Tensor]:
            phi, a = counted(at)
            value = (at @ at).item() + price * phi + 0.5 * rho * phi**2  # noqa: B023
            return value, 2 * at + (price + rho * phi) * a  # noqa: B023

        theta = lbfgs(value, theta, steps)
        price += rho * counted.seen[-1][0]


def decay(counted: Counted, theta: Tensor, setting: int) -> None:
    """Weight decay, L + mu R by L-BFGS, and a search for the mu whose minimum has the loss c."""
    mu = counted.level / abs(multiplier(theta, counted(theta)[1]))
    low, high = 0.0, math.inf

    def value(at: Tensor) -> tuple[float, Tensor]:
        phi, a = counted(at)
        loss = counted.level * math.exp(phi)
        return loss + mu * (at @ at).item(), loss * a + 2 * mu * at

    while True:
        theta = lbfgs(value, theta, setting)
        low, high = (mu, high) if counted.seen[-1][0] < 0 else (low, mu)
        if high < math.inf and low > 0:
            mu = math.sqrt(low * high)
        else:
            mu *= 2 if high == math.inf else 0.5
        if high / max(low, 1e-300) < 1 + 1e-9:
            raise Over


def cooper(counted: Counted, theta: Tensor, setting: tuple[float, float, float]) -> None:
    """Cooper's augmented Lagrangian: Adam for theta, gradient ascent for the multiplier."""
    import cooper

    rate, dual, weight = setting
    leaf = torch.nn.Parameter(theta.clone())
    price, size = max(multiplier(theta, counted(theta)[1]), 0.0), (theta @ theta).item()

    class Level(cooper.ConstrainedMinimizationProblem):
        def __init__(self) -> None:
            super().__init__()
            kinds = cooper.ConstraintType.EQUALITY, cooper.formulations.AugmentedLagrangian
            init = torch.tensor([price], dtype=theta.dtype)
            held = cooper.multipliers.DenseMultiplier(init=init, dtype=theta.dtype)
            rho = torch.tensor([weight * size], dtype=theta.dtype)
            self.level = cooper.Constraint(
                kinds[0],
                formulation_type=kinds[1],
                multiplier=held,
                penalty_coefficient=cooper.penalty_coefficients.DensePenaltyCoefficient(rho),
            )

        def compute_cmp_state(self) -> Any:
            phi, a = counted(leaf.detach())
            linear = phi + (leaf - leaf.detach()) @ a  # phi with its gradient
            state = cooper.ConstraintState(violation=linear.reshape(1))
            return cooper.CMPState(loss=leaf @ leaf, observed_constraints={self.level: state})

    problem = Level()
    optimizer = cooper.optim.AlternatingDualPrimalOptimizer(
        problem,
        primal_optimizers=torch.optim.Adam([leaf], lr=rate),
        dual_optimizers=torch.optim.SGD(problem.dual_parameters(), lr=dual * size, maximize=True),
    )
    while True:
        optimizer.roll()


def remembering(counted: Counted) -> Callable[[np.ndarray], tuple[float, Tensor]]:
    """Phi and its gradient at an array, not counted again where they were asked for last."""
    last: list[Any] = [None, None]

    def at(x: np.ndarray) -> tuple[float, Tensor]:
        if last[0] is None or not np.array_equal(last[0], x):
            last[:] = x.copy(), counted(torch.from_numpy(x.copy()))
        return last[1]

    return at


def nlopts(counted: Counted, theta: Tensor, setting: tuple[float, float]) -> None:
    """NLopt's LD_AUGLAG with its L-BFGS, R scaled, to a relative change of it a subproblem."""
    import nlopt

    at, (weight, change) = remembering(counted), setting
    unit = weight / (theta @ theta).item()  # its own rho is 10 at most

    def objective(x: np.ndarray, grad: np.ndarray) -> float:
        if grad.size:
            grad[:] = 2 * unit * x
        return unit * float(x @ x)

    def constraint(x: np.ndarray, grad: np.ndarray) -> float:
        phi, a = at(x)
        if grad.size:
            grad[:] = a.numpy()
        return phi

    outer, inner = (nlopt.opt(kind, len(theta)) for kind in (nlopt.LD_AUGLAG, nlopt.LD_LBFGS))
    inner.set_ftol_rel(change)
    inner.set_vector_storage(40)
    outer.set_local_optimizer(inner)
    outer.set_min_objective(objective)
    outer.add_equality_constraint(constraint, 1e-9)
    outer.set_ftol_rel(1e-15)
    # a callback's exception becomes an error of nlopt's own
    with contextlib.suppress(nlopt.runtime_error):
        outer.optimize(theta.numpy())


def trust(counted: Counted, theta: Tensor, setting: float) -> None:
    """SciPy's trust-constr, Hessian products of the constraint from differences of gradients."""
    at = remembering(counted)

    def hessian(x: np.ndarray, v: np.ndarray) -> LinearOperator:
        def product(p: np.ndarray) -> np.ndarray:
            size = np.linalg.norm(p)
            if size == 0:
                return np.zeros_like(p)
            there = counted(torch.from_numpy(x + 1e-5 * p.ravel() / size))[1]
            return v[0] * (there - at(x)[1]).numpy() * size / 1e-5

        return LinearOperator((len(x), len(x)), matvec=product, dtype=float)

    size, unit = len(theta), 1 / (theta @ theta).item()
    twice = LinearOperator((size, size), matvec=lambda p: 2 * unit * p, dtype=float)
    held = NonlinearConstraint(
        lambda x: at(x)[0], 0, 0, jac=lambda x: at(x)[1].numpy()[None, :], hess=hessian
    )
    minimize(
        lambda x: (unit * x @ x, 2 * unit * x),
        theta.numpy(),
        jac=True,
        hess=lambda _: twice,
        method="trust-constr",
        constraints=held,
        options={"maxiter": 10**6, "gtol": 0, "xtol": 0, "initial_tr_radius": setting},
    )


def tangent(counted: Counted, theta: Tensor, setting: float) -> None:
    """Gradient steps in the tangent space and Gauss-Newton corrections back into the band."""
    phi, a = counted(theta)
    while True:
        r = 2 * theta
        theta = theta - setting * (r - (r @ a) / (a @ a) * a)
        phi, a = counted(theta)
        while abs(phi) > BAND:
            theta = theta - phi / (a @ a) * a
            phi, a = counted(theta)


def teleport(counted: Counted, theta: Tensor, setting: float) -> None:
    """Sequential linear programming as in level-set teleportation (Mishkin et al. 2024).

    A step along the tangent gradient with restoration, shortened until R + rho |phi| falls.
    """
    phi, a = counted(theta)
    share = 0.01
    while True:
        r, price = 2 * theta, multiplier(theta, a)
        rho = max(1.5 * abs(price), setting * (theta @ theta).item())
        merit = (theta @ theta).item() + rho * abs(phi)
        step = -(r - (r @ a) / (a @ a) * a) / 2 - phi / (a @ a) * a
        fall = rho * abs(phi) - (r @ step).item()
        share = min(1.0, 2 * share)
        while True:
            there = theta + share * step
            phi_there, a_there = counted(there)
            if merit - (there @ there).item() - rho * abs(phi_there) >= 1e-4 * share * fall:
                break
            share *= 0.5
        theta, phi, a = there, phi_there, a_there


RIVALS: dict[str, tuple[Callable[[Counted, Tensor, Any], None], list[Any]]] = {
    "augmented Lagrangian, L-BFGS": (
        augmented,
        [(rho, steps) for rho in (0.1, 1.0, 10.0, 100.0) for steps in (20, 60)],
    ),
    "NLopt, AUGLAG with L-BFGS": (
        nlopts,
        [(weight, change) for weight in (0.3, 1.0, 3.0) for change in (1e-4, 1e-5, 1e-7)],
    ),
    "cooper, augmented Lagrangian": (
        cooper,
        [(rate, dual, 1.0) for rate in (3e-3, 1e-2) for dual in (0.001, 0.01)],
    ),
    "SciPy, trust-constr": (trust, [1.0, 10.0]),
    "weight decay by L-BFGS, penalty searched for": (decay, [50, 200]),
    "tangent gradient, Gauss-Newton correction": (tangent, [0.001, 0.003, 0.01, 0.03]),
    "teleportation's SLP": (teleport, [0.3, 1.0, 3.0, 10.0]),
}
WALK = "isoloss, sqp"


def run(name: str, seed: int, rival: str, setting: Any, limit: int) -> np.ndarray:
    """What one method found, a row (evaluations, phi, R, KKT residual) a point."""
    torch.set_num_threads(1)
    problem = experiments.get(name).start(seed, dtype=torch.float64).problem
    theta = problem.current()
    if rival == WALK:
        stop = Stop(kkt_residual=1e-3, evaluations=limit, gain=0)
        record = Record(points_every=10**9)
        steps = traverse(problem, stop=stop, record=record, check=False, progress=False).steps
        phi = np.log1p(steps["level_error"])
        columns = (steps["evaluations"], phi, steps["regularizer"], steps["kkt_residual"])
        return np.column_stack(columns)
    counted = Counted(problem, problem.loss(theta).item(), limit)
    with contextlib.suppress(Over):
        RIVALS[rival][0](counted, theta, setting)
    return np.column_stack([np.arange(1, len(counted.seen) + 1), np.array(counted.seen)])


def least(rows: np.ndarray) -> float:
    """The least R of a point on the level set."""
    return float(rows[np.abs(rows[:, 1]) <= BAND * (1 + 1e-9), 2].min(initial=math.inf))


def counts(rows: np.ndarray, best: float) -> list[float]:
    """Evaluations to each of `ENDS`, infinite where it was not reached."""
    inside = np.abs(rows[:, 1]) <= BAND * (1 + 1e-9)
    arrived = (rows[:, 2] <= 1.05 * best, rows[:, 2] <= 1.01 * best)
    arrived += (rows[:, 3] <= 1e-2, rows[:, 3] <= 1e-3)
    return [float(rows[inside & there, 0].min(initial=math.inf)) for there in arrived]


def strayed(rows: np.ndarray, until: float) -> float:
    return float(np.abs(rows[rows[:, 0] <= until, 1]).max())


def table(name: str, found: dict[str, dict[int, np.ndarray]], chosen: dict[str, Any]) -> None:
    seeds = sorted(found[WALK])
    best = {seed: min(least(runs[seed]) for runs in found.values()) for seed in seeds}
    print(f"\n**{name}**, seeds {seeds[0]} to {seeds[-1]}, medians (each seed)\n")
    print(f"| method | {' | '.join(ENDS)} | largest \\|φ\\| | setting |")
    print(f"| --- |{' ---: |' * len(ENDS)} ---: | --- |")
    for rival, runs in found.items():
        each = [counts(runs[seed], best[seed]) for seed in seeds]
        stray = max(strayed(runs[seed], one[1]) for seed, one in zip(seeds, each, strict=True))
        cells = [_cell([one[k] for one in each]) for k in range(len(ENDS))]
        print(f"| {rival} | {' | '.join(cells)} | {stray:.1g} | {chosen.get(rival, '')} |")


def _cell(values: list[float]) -> str:
    def shown(value: float) -> str:
        return f"{value:,.0f}" if value < math.inf else "–"  # noqa: RUF001

    return f"{shown(statistics.median(values))} ({' '.join(shown(value) for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["IRIS_FF", "MPG_FF", "MNIST_FF"]
    parser.add_argument("--experiments", nargs="+", default=names, choices=names)
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=4000)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    with get_context("spawn").Pool(given.processes, maxtasksperchild=8) as pool:
        for name in given.experiments:
            jobs = [(WALK, None), *((r, s) for r in given.rivals for s in RIVALS[r][1])]
            arguments = [(name, 0, rival, setting, given.limit) for rival, setting in jobs]
            tried = pool.starmap(run, arguments, chunksize=1)
            best = min(least(rows) for rows in tried)
            chosen: dict[str, Any] = {}
            found: dict[str, dict[int, np.ndarray]] = {WALK: {0: tried[0]}}
            for rival in given.rivals:
                own = [(s, rows) for (r, s), rows in zip(jobs, tried, strict=True) if r == rival]
                # to 1 % of R, then to 5 %, then the least R
                order = [(counts(rows, best)[1::-1], least(rows)) for _, rows in own]
                chosen[rival], rows = own[min(range(len(own)), key=order.__getitem__)]
                found[rival] = {0: rows}
            more = [(r, seed) for r in found for seed in range(1, given.seeds)]
            arguments = [(name, seed, r, chosen.get(r), given.limit) for r, seed in more]
            for (rival, seed), rows in zip(more, pool.starmap(run, arguments, 1), strict=True):
                found[rival][seed] = rows
            table(name, found, chosen)


if __name__ == "__main__":
    main()
