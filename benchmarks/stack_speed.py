"""Networks trained per second: a stack of them, and one after another in plain torch.

Both train the same networks on the same mini-batches with weight decay, alternating within one run
on one thread. Time is the thread's CPU time; the fastest round of each form counts, since other
work on the machine can only slow a round down. Plain torch comes in two forms: the penalty written
into the loss, as in the paper's code, with the default `torch.optim.Adam`; and the fastest plain
form, the penalty as `weight_decay` of a fused `torch.optim.Adam`.

    python benchmarks/stack_speed.py [--experiment IRIS_FF ...] [--rounds 9] [--members 14]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from isoloss import experiments, training

LOSSES = {"cross_entropy": functional.cross_entropy, "mse": functional.mse_loss}
STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", nargs="+", default=experiments.names()[:4])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--members", type=int, default=14)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    print(f"{arguments.members} networks, {arguments.rounds} rounds, one thread,")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}\n")
    print("| experiment | ms a network and step | penalty in the loss | fastest plain torch |")
    print("| --- | ---: | ---: | ---: |")
    found = {}
    for name in arguments.experiment:
        times = measure(name, arguments.members, arguments.rounds)
        ratios = {form: min(seconds) / min(times["stack"]) for form, seconds in times.items()}
        found[name] = ratios
        print(
            f"| {name} | {1e3 * min(times['stack']):.3f} "
            f"| {ratios['penalty in the loss']:.1f} | {ratios['fastest']:.1f} |",
            flush=True,
        )
    print(f"\n{json.dumps(found)}")


def measure(name: str, members: int, rounds: int) -> dict[str, list[float]]:
    experiment = experiments.get(name)
    data = experiment.data(0)
    rows = torch.arange(32 * STEPS) % len(data.targets)
    inputs, targets = data.inputs[rows], data.targets[rows]
    batches = list(zip(inputs.split(32), targets.split(32), strict=True))
    network = experiment.network(0)
    loss = LOSSES[experiment.loss]
    penalties = [experiment.penalties[k % len(experiment.penalties)] for k in range(members)]

    stack = training.Training(network, experiment.loss, inputs, targets, penalties=penalties)
    theta = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    state = stack.init(theta.expand(members, -1))

    def one_after_another(fastest: bool) -> None:
        # how the penalty enters does not change the cost, so one network stands for all
        model = experiment.network(0)
        kernels = [p for p in model.parameters() if p.ndim > 1]
        biases = [p for p in model.parameters() if p.ndim == 1]
        if fastest:
            groups = [{"params": kernels, "weight_decay": 2e-3}, {"params": biases}]
            adam = torch.optim.Adam(groups, lr=1e-3, eps=1e-7, fused=True)
        else:
            adam = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7)
        for x, y in batches:
            adam.zero_grad()
            total = loss(model(x), y)
            if not fastest:
                total = total + 1e-3 * sum(p.square().sum() for p in kernels)
            total.backward()
            adam.step()

    forms: dict[str, tuple[int, Callable[[], None]]] = {
        "penalty in the loss": (1, lambda: one_after_another(fastest=False)),
        "fastest": (1, lambda: one_after_another(fastest=True)),
        "stack": (members, lambda: stack.epoch(state)),
    }
    times: dict[str, list[float]] = {form: [] for form in forms}
    for round_ in range(rounds + 1):
        for form, (networks, run) in forms.items():
            began = time.thread_time()
            run()
            if round_:  # the first round warms up
                times[form].append((time.thread_time() - began) / networks / STEPS)
    return times


if __name__ == "__main__":
    main()
