"""Time of a step of the `paper` walk over the time of a bare loss and gradient in torch.

Both use the same network on the same data and alternate within one run on one thread, so that other
work on the machine slows both. The walk records what the paper's does: loss, regularizer, angle,
test loss and accuracy at every step, and the weights of every 50th point.

    python benchmarks/walk_overhead.py [--experiment IRIS_FF] [--rounds 15] [--steps 300]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch
from torch.nn import functional

from isoloss import Record, Stop, experiments, traverse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="IRIS_FF", choices=experiments.names())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    experiment = experiments.get(arguments.experiment)
    start = experiment.start(seed=0)
    model, data = start.model, experiment.data(0)
    parameters = list(model.parameters())
    bare_loss = {"cross_entropy": functional.cross_entropy, "mse": functional.mse_loss}

    def bare() -> None:
        for _ in range(arguments.steps):
            loss = bare_loss[experiment.loss](model(data.inputs), data.targets)
            torch.autograd.grad(loss, parameters)

    def walk(probes: bool) -> None:
        traverse(
            start.problem,
            method=experiment.paper,
            stop=Stop(steps=arguments.steps),
            record=Record(points_every=50, points_at_most=None),
            probes=start.probes if probes else {},
            check=False,
            progress=False,
        )

    columns = {
        "bare": bare,
        "walk": lambda: walk(probes=False),
        "walk, test set at every step": lambda: walk(probes=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in columns}
    for round_ in range(arguments.rounds + 1):
        for name, run in columns.items():
            began = time.process_time()
            run()
            if round_:  # the first round warms up
                seconds[name].append((time.process_time() - began) / arguments.steps)

    print(f"{experiment.name}, {arguments.rounds} rounds of {arguments.steps} steps, one thread,")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}\n")
    print("| | ms a step, median | over bare, median of rounds | min | max |")
    print("| --- | ---: | ---: | ---: | ---: |")
    ratios = {}
    for name, times in seconds.items():
        each = [a / b for a, b in zip(times, seconds["bare"], strict=True)]
        ratios[name] = statistics.median(each)
        print(
            f"| {name} | {1e3 * statistics.median(times):.3f} | {ratios[name]:.2f} | "
            f"{min(each):.2f} | {max(each):.2f} |"
        )
    print(f"\n{json.dumps(ratios)}")


if __name__ == "__main__":
    main()
