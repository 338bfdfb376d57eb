"""Time that `sqp` takes outside its evaluations, as a percentage of the time in them.

A walk is taken in float32 from a trained start, on one thread, with the method's steps
and the problem's evaluations timed separately. The same walk is repeated several times; the least
CPU time of each step counts, for the evaluations and for the rest, so that other work on the
machine has little effect.

    python benchmarks/sqp_overhead.py [--experiments NAME ...] [--rounds 5]

prints the share after 50, 100, 200 and 400 evaluations, since the number of stored vectors grows at
first. For comparison, the last column gives the cost of the two products that no trial can do
without (the coordinates of a gradient, and a step) with 30 stored vectors, midway between a full
basis and a compressed one, right after an evaluation has evicted them from the cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import thread_time as clock
from typing import Any

import torch
from pydantic import PrivateAttr
from torch import Tensor

import isoloss
from isoloss import SQP, Problem, experiments

MARKS = (50, 100, 200, 400)
ROWS = 30
EVALUATIONS = ("loss_and_grad", "rough")


class TimedSQP(SQP):
    """`isoloss.SQP` with its steps timed."""

    _seconds: list[float] = PrivateAttr(default_factory=list)

    def step(self, objective: Any, state: Any) -> Any:
        began = clock()
        found = super().step(objective, state)
        self._seconds.append(clock() - began)
        return found


def recorded(function: Callable[[Tensor], Any], seconds: list[float]) -> Callable[[Tensor], Any]:
    """The function, which notes how long it took."""

    def run(theta: Tensor) -> Any:
        began = clock()
        found = function(theta)
        seconds.append(clock() - began)
        return found

    return run


@contextmanager
def timed(problem: Problem) -> Iterator[list[float]]:
    """The seconds of each evaluation of a problem, from now on."""
    seconds: list[float] = []
    for name in EVALUATIONS:
        setattr(problem, name, recorded(getattr(problem, name), seconds))
    try:
        yield seconds
    finally:
        for name in EVALUATIONS:
            delattr(problem, name)


def walk(problem: Problem) -> list[tuple[int, float, float]]:
    """Evaluations so far, seconds in them and seconds outside them, for each step."""
    method, steps = TimedSQP(), []
    stop = isoloss.Stop(evaluations=MARKS[-1], kkt_residual=0, gain=0)
    with timed(problem) as evaluations:
        for row in isoloss.walk(problem, method=method, stop=stop):
            if method._seconds:
                inside = sum(evaluations)
                steps.append((row["evaluations"], inside, sum(method._seconds) - inside))
            evaluations.clear()
            method._seconds.clear()
    return steps


def two_products(problem: Problem) -> float:
    """Seconds of a product with ROWS vectors and one with their transpose, after an evaluation."""
    theta = problem.current()
    rows, weights = theta.new_ones(ROWS, len(theta)), theta.new_ones(ROWS)
    times = []
    for _ in range(30):
        problem.loss_and_grad(theta)
        began = clock()
        torch.mv(rows, theta)
        torch.addmv(theta, rows.t(), weights)
        times.append(clock() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", nargs="+", default=["IRIS_FF", "MPG_FF", "MNIST_FF"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    print(f"one thread, {arguments.rounds} rounds, median of seeds 0 to ", end="")
    print(f"{arguments.seeds - 1}, torch {torch.__version__}, Python {platform.python_version()}\n")
    marks = " | ".join(f"outside, {mark}" for mark in MARKS)
    print(f"| experiment | ms an evaluation | {marks} | two products |")
    print(f"| --- | ---: |{' ---: |' * len(MARKS)} ---: |")
    shares: dict[str, dict[int, float]] = {}
    for name in arguments.experiments:
        each: dict[int, list[float]] = {mark: [] for mark in MARKS}
        costs, products = [], []
        for seed in range(arguments.seeds):
            problem = experiments.get(name).start(seed=seed).problem
            walk(problem)  # warms up
            rounds = [walk(problem) for _ in range(arguments.rounds)]
            steps = [
                (same[0][0], min(step[1] for step in same), min(step[2] for step in same))
                for same in zip(*rounds, strict=True)
            ]
            for mark in MARKS:
                upto = [step for step in steps if step[0] <= mark]
                inside, outside = sum(step[1] for step in upto), sum(step[2] for step in upto)
                each[mark].append(outside / inside)
            costs.append(1e3 * sum(step[1] for step in steps) / steps[-1][0])
            products.append(1e3 * two_products(problem) / costs[-1])
        shares[name] = {mark: statistics.median(values) for mark, values in each.items()}
        shown = " | ".join(f"{100 * shares[name][mark]:.0f} %" for mark in MARKS)
        least = f"{100 * statistics.median(products):.0f} %"
        print(f"| {name} | {statistics.median(costs):.2f} | {shown} | {least} |", flush=True)
    print(f"\n{json.dumps(shares)}")


if __name__ == "__main__":
    main()
