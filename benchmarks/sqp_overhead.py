"""Time that `sqp` takes outside its evaluations, as a percentage of the time in them.

A walk is taken in float32 from a trained start, on one thread by default, with the method's steps
and the problem's evaluations timed separately. The same walk is repeated several times; the least
CPU time of each step counts, for the evaluations and for the rest, so that other work on the
machine has little effect.

    python benchmarks/sqp_overhead.py [--experiments NAME ...] [--rounds 5] [--threads 1]

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
import time
from collections.abc import Callable
from typing import Any

import torch

import isoloss
from isoloss import SQP, Problem, experiments

MARKS = (50, 100, 200, 400)
ROWS = 30


class Timed:
    """A function with the seconds spent in it."""

    def __init__(self, function: Callable[..., Any], clock: Callable[[], float]) -> None:
        self.function, self.clock, self.seconds = function, clock, 0.0

    def __call__(self, *arguments: Any) -> Any:
        began = self.clock()
        found = self.function(*arguments)
        self.seconds += self.clock() - began
        return found


class TimedSQP:
    """`isoloss.SQP` with its steps timed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        inner = SQP()
        self.name, self.stride, self.takes_all_steps = inner.name, inner.stride, False
        self.relative_tolerance, self.init = inner.relative_tolerance, inner.init
        self.step = Timed(inner.step, clock)


def walk(problem: Problem, clock: Callable[[], float]) -> list[tuple[int, float, float]]:
    """Evaluations so far, seconds in them and seconds outside them, for each step."""
    evaluate = problem.loss_and_grad
    timed, method = Timed(evaluate, clock), TimedSQP(clock)
    problem.loss_and_grad = timed  # type: ignore[method-assign]
    stop = isoloss.Stop(evaluations=MARKS[-1], kkt_residual=0)
    steps = []
    for row in isoloss.walk(problem, method=method, stop=stop):
        if steps or method.step.seconds:
            inside = timed.seconds
            steps.append((row["evaluations"], inside, method.step.seconds - inside))
        timed.seconds = method.step.seconds = 0.0
    problem.loss_and_grad = evaluate  # type: ignore[method-assign]
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
    marks = " | ".join(f"outside, {mark}" for mark in MARKS)
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
                inside, outside = sum(step[1] for step in upto), sum(step[2] for step in upto)
                each[mark].append(outside / inside)
            costs.append(1e3 * sum(step[1] for step in steps) / steps[-1][0])
            products.append(1e3 * two_products(problem, clock) / costs[-1])
        shares[name] = {mark: statistics.median(values) for mark, values in each.items()}
        shown = " | ".join(f"{100 * shares[name][mark]:.0f} %" for mark in MARKS)
        least = f"{100 * statistics.median(products):.0f} %"
        print(f"| {name} | {statistics.median(costs):.2f} | {shown} | {least} |", flush=True)
    print(f"\n{json.dumps(shares)}")


if __name__ == "__main__":
    main()
