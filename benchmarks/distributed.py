"""Efficiency of several processes on one problem, and what a trial sends.

Each rank is a process with one thread on a core of its own, over gloo on this machine. Rounds
alternate: rank 0 evaluates all examples alone, the others waiting, then each rank its share. CPU
time counts where the machine is busy; wall-clock time has the waiting in it.

    python benchmarks/distributed.py [--ranks 2] [--rounds 7] [--width 512] [--examples 8000]

The last table is computed, not measured: what a trial of a walk by sqp costs to send on 8, 64 and
512 GPUs, from the latency and the bandwidth of their links.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from isoloss import Problem, Stop, traverse

Times = dict[str, list[tuple[float, float]]]  # wall-clock and CPU seconds of each round

NODE, NET = (20e-6, 400e9), (40e-6, 45e9)
"""Seconds of a small collective, and bytes a second in and out of each GPU, within a node of eight
H100 (NVLink) and between such nodes (InfiniBand NDR): figures of NVIDIA's nccl-tests as published,
not measured here."""
HBM = 3.35e12  # bytes a second of an H100's memory
SMALL, LARGE = 4.5, 3  # small exchanges and vectors a trial sends, two trials to a step
MEMORY = 40  # of SQP, by default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--examples", type=int, default=8000)
    arguments = parser.parse_args()
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        here, there = context.Pipe(duplex=False)
        ranks = [
            context.Process(target=run, args=(rank, arguments, f"{folder}/store", there))
            for rank in range(arguments.ranks)
        ]
        for process in ranks:
            process.start()
        found = here.recv()
        for process in ranks:
            process.join()
    report(arguments, found)


def run(rank: int, arguments: argparse.Namespace, store: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=arguments.ranks
    )
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, arguments.width), nn.Tanh(), nn.Linear(arguments.width, 10)
    )
    inputs, targets = torch.rand(arguments.examples, 784), torch.arange(arguments.examples) % 10
    size = min(1000, arguments.examples // arguments.ranks)
    options: dict[str, Any] = {"loss": "cross_entropy", "chunk_size": size}
    whole = Problem(model, data=(inputs, targets), **options)
    own = inputs[rank :: arguments.ranks], targets[rank :: arguments.ranks]
    shared = Problem(model, data=own, group=dist.group.WORLD, **options)
    theta, stop = whole.current(), Stop(evaluations=12, kkt_residual=0)
    flat, small = theta.clone(), torch.zeros(64, dtype=torch.float64)
    length = -(-len(flat) // arguments.ranks) * arguments.ranks
    sent, gathered = torch.zeros(length), torch.zeros(64 * arguments.ranks, dtype=torch.float64)

    def exchange() -> None:
        dist.all_gather(list(gathered.chunk(arguments.ranks)), small)

    def vector() -> None:
        dist.all_to_all_single(torch.empty_like(sent), sent)

    def walk(problem: Problem) -> None:
        traverse(problem, stop=stop, check=False, progress=False)

    alone: dict[str, Callable[[], Any]] = {
        "evaluation, alone": lambda: whole.loss_and_grad(theta),
        "walk, alone": lambda: walk(whole),
    }
    together: dict[str, Callable[[], Any]] = {
        "evaluation, shared": lambda: shared.loss_and_grad(theta),
        "walk, shared": lambda: walk(shared),
        "exchange": exchange,
        "vector": vector,
    }
    times: Times = {name: [] for name in (*alone, *together)}
    for round_ in range(arguments.rounds + 1):
        for name, work in {**alone, **together}.items():
            dist.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            if rank == 0 or name in together:
                work()
            taken = time.perf_counter() - wall, time.process_time() - cpu
            if round_:  # the first warms up
                times[name].append(taken)
    if rank == 0:
        pipe.send({"times": times, "parameters": shared.size})
    dist.destroy_process_group()


def report(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    times, size = found["times"], found["parameters"]
    wall, cpu = (
        {name: statistics.median(one[k] for one in each) for name, each in times.items()}
        for k in (0, 1)
    )
    print(f"{size:,} parameters, {arguments.examples:,} examples, medians of {arguments.rounds},")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}\n")
    print(f"| {arguments.ranks} ranks against one | wall-clock | CPU time of a rank |")
    print("| --- | ---: | ---: |")
    ratios = {}
    for name in ("evaluation", "walk"):
        parts = [
            one[f"{name}, alone"] / one[f"{name}, shared"] / arguments.ranks for one in (wall, cpu)
        ]
        ratios[name] = parts
        print(f"| efficiency of {name} | {parts[0]:.2f} | {parts[1]:.2f} |")
    rate = 4 * size * (1 - 1 / arguments.ranks) / wall["vector"]
    print(f"\na small exchange {1e6 * wall['exchange']:.0f} us, a vector {rate / 1e9:.2f} GB/s\n")
    columns = (
        "parameters",
        "GPUs",
        "MB sent",
        "ms",
        "ms for shares",
        "GB",
        "a share",
        "ms",
        "a share",
    )
    print(f"| {' | '.join(columns)} |")
    print("| ---: " * 9 + "|")
    for parameters in (10**6, 10**8, 10**9):
        for gpus in (8, 64, 512):
            print(row(parameters, gpus))
    print(f"\n{json.dumps(ratios)}")


def row(parameters: int, gpus: int) -> str:
    """What a trial sends, and what the basis of sqp takes and costs to read, whole and shared."""
    latency, bandwidth = NODE if gpus <= 8 else NET
    latency *= math.log2(gpus) / 3  # a collective takes longer where there are more
    sent = 4 * parameters * (1 - 1 / gpus)  # of one vector
    vector, small = 1e3 * (sent / bandwidth + latency), 1e3 * SMALL * latency
    basis = 2 * MEMORY * 4 * parameters
    reading = 1e3 * basis / HBM  # once for the step and once for the inner products: half each
    numbers = (LARGE * vector + small, vector + 1e3 * latency, basis / 1e9, basis / gpus / 1e9)
    several = " | ".join(f"{number:.2g}" for number in (*numbers, reading, reading / gpus))
    return f"| {parameters:,} | {gpus} | {LARGE * sent / 1e6:,.0f} | {several} |"


if __name__ == "__main__":
    main()
