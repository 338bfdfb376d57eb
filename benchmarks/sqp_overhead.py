"""Time that `sqp` takes beside its evaluations, as a share of theirs.

A walk is stepped by hand in float32 from a trained start, on one thread unless told otherwise, with
the problem's loss and gradient timed apart. The same walk is gone several times; of each step the
least CPU time counts, for the evaluations and for the rest, so that other work on the machine
disturbs little.

    python benchmarks/sqp_overhead.py [--experiments NAME ...] [--rounds 5] [--threads 1]

writes the share after 50, 100, 200 and 400 evaluations: the method's vectors grow at first. Beside
it, for comparison, what the two products that a trial cannot do without take (the coordinates of a
gradient and a step) over 30 stored vectors, half of a full memory having been kept, right after an
evaluation has swept them out of the cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from isoloss import SQP, Problem, experiments
from isoloss.point import Objective
from isoloss.regularizers import SquaredNorm

MARKS = (50, 100, 200, 400)
ROWS = 30


class Timed:
    """A problem whose evaluations are timed."""

    def __init__(self, problem: Problem, clock: Callable[[], float]) -> None:
        self.problem, self.clock, self.seconds = problem, clock, 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self.problem, name)

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """As the problem's."""
        began = self.clock()
        found = self.problem.loss_and_grad(theta)
        self.seconds += self.clock() - began
        return found


def walk(problem: Problem, clock: Callable[[], float]) -> list[tuple[int, float, float]]:
    """Evaluations so far, seconds in them and seconds beside them, of each step."""
    timed, method = Timed(problem, clock), SQP()
    objective = Objective(timed, SquaredNorm())  # type: ignore[arg-type]
    state = method.init(objective, problem.current(), None, 1e-3)
    steps = []
    while state.ending is None and objective.evaluations < MARKS[-1]:
        timed.seconds, began = 0.0, clock()
        state = method.step(objective, state)
        whole = clock() - began
        steps.append((objective.evaluations, timed.seconds, whole - timed.seconds))
    return steps


def two_products(problem: Problem, clock: Callable[[], float]) -> float:
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
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter

    print(f"{arguments.threads} threads, {arguments.rounds} rounds, median of seeds 0 to ", end="")
    print(f"{arguments.seeds - 1}, torch {torch.__version__}, Python {platform.python_version()}\n")
    marks = " | ".join(f"beside it, {mark}" for mark in MARKS)
    print(f"| experiment | ms an evaluation | {marks} | two products |")
    print(f"| --- | ---: |{' ---: |' * len(MARKS)} ---: |")
    shares: dict[str, dict[int, float]] = {}
    for name in arguments.experiments:
        each: dict[int, list[float]] = {mark: [] for mark in MARKS}
        costs, products = [], []
        for seed in range(arguments.seeds):
            problem = experiments.get(name).start(seed=seed).problem
            walk(problem, clock)  # warms up
            rounds = [walk(problem, clock) for _ in range(arguments.rounds)]
            steps = [
                (same[0][0], min(step[1] for step in same), min(step[2] for step in same))
                for same in zip(*rounds, strict=True)
            ]
            for mark in MARKS:
                upto = [step for step in steps if step[0] <= mark]
                inside, beside = sum(step[1] for step in upto), sum(step[2] for step in upto)
                each[mark].append(beside / inside)
            costs.append(1e3 * sum(step[1] for step in steps) / steps[-1][0])
            products.append(1e3 * two_products(problem, clock) / costs[-1])
        shares[name] = {mark: statistics.median(values) for mark, values in each.items()}
        shown = " | ".join(f"{100 * shares[name][mark]:.0f} %" for mark in MARKS)
        least = f"{100 * statistics.median(products):.0f} %"
        print(f"| {name} | {statistics.median(costs):.2f} | {shown} | {least} |", flush=True)
    print(f"\n{json.dumps(shares)}")


if __name__ == "__main__":
    main()
