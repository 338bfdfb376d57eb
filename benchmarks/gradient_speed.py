"""Time of one full-batch loss and gradient: this project, plain torch, and JAX, side by side.

For each experiment, on its own data and at the network's random initialization, in float32:
`Problem.loss_and_grad`; torch's autograd on all examples at once; the same in chunks of 100, images
in channels-last layout, summed; and `jax.jit(jax.value_and_grad(...))` of the same network. Each
runs in a process of its own, pinned to the same cores; they alternate every few tenths of a second,
so that other work on the machine slows them all. On one core the clock is the CPU time of the
process, on several the wall clock. JAX is optional: without it (extra `benchmarks`) its column is
left out.

    python benchmarks/gradient_speed.py [--experiments NAME ...] [--threads 1] [--rounds 9]

writes a table in Markdown to standard output, and benchmarks/out/gradient_speed.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from isoloss import IsolossError, Problem, experiments

TORCH_LOSSES = {"cross_entropy": functional.cross_entropy, "mse": functional.mse_loss}
AT_ONCE = 100
PEAK = "matmul"


def isoloss_way(name: str) -> Callable[[], Any]:
    experiment = experiments.get(name)
    data, model = experiment.data(0), experiment.network(0)
    problem = Problem(model, experiment.loss, (data.inputs, data.targets))
    theta = problem.current()
    return lambda: problem.loss_and_grad(theta)


def torch_way(name: str) -> Callable[[], Any]:
    experiment = experiments.get(name)
    data, model = experiment.data(0), experiment.network(0)
    loss, parameters = TORCH_LOSSES[experiment.loss], list(model.parameters())

    def evaluate() -> Any:
        value = loss(model(data.inputs), data.targets)
        return value.detach(), torch.autograd.grad(value, parameters)

    return evaluate


def torch_chunked_way(name: str) -> Callable[[], Any]:
    experiment = experiments.get(name)
    data, model = experiment.data(0), experiment.network(0)
    loss, parameters = TORCH_LOSSES[experiment.loss], list(model.parameters())
    inputs = data.inputs
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)
    chunks = list(zip(inputs.split(AT_ONCE), data.targets.split(AT_ONCE), strict=True))

    def evaluate() -> Any:
        for parameter in parameters:
            parameter.grad = None
        total = torch.zeros(())
        for x, y in chunks:
            value = loss(model(x), y) * (len(y) / len(data.targets))
            value.backward()
            total += value.detach()
        return total, [parameter.grad for parameter in parameters]

    return evaluate


def jax_way(name: str) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    experiment = experiments.get(name)
    data, model = experiment.data(0), experiment.network(0)
    layers = list(model.children())
    start = [jnp.asarray(parameter.detach().numpy()) for parameter in model.parameters()]
    inputs = jnp.asarray(data.inputs.numpy())
    if inputs.ndim == 4:
        inputs = inputs.transpose(0, 2, 3, 1)  # XLA on a CPU is at its best with channels last
    targets = jnp.asarray(data.targets.numpy())

    def network(parameters: list[Any], x: Any) -> Any:
        left = iter(parameters)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                x = x @ next(left).T + next(left)
            elif isinstance(layer, nn.Conv2d):
                kernel = next(left).transpose(2, 3, 1, 0)
                x = jax.lax.conv_general_dilated(
                    x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
                ) + next(left)
            elif isinstance(layer, nn.AvgPool2d):
                n, height, width, channels = x.shape
                x = x[:, : height // 2 * 2, : width // 2 * 2]
                x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
            elif isinstance(layer, nn.Flatten):
                x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
            else:
                x = jnp.tanh(x)
        return x

    def loss(parameters: list[Any], inputs: Any, targets: Any) -> Any:
        outputs = network(parameters, inputs)
        if experiment.loss == "mse":
            return jnp.square(outputs - targets).mean()
        log = jax.nn.log_softmax(outputs)
        return -jnp.take_along_axis(log, targets[:, None], 1).mean()

    compiled = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(compiled(start, inputs, targets))


def matmul_peak(name: str) -> Callable[[], Any]:
    del name
    a, b = torch.randn(2, 1024, 1024)
    out = torch.empty(1024, 1024)
    return lambda: torch.mm(a, b, out=out)


WAYS: dict[str, Callable[[str], Callable[[], Any]]] = {
    "isoloss": isoloss_way,
    "torch": torch_way,
    "torch by 100": torch_chunked_way,
    "JAX": jax_way,
    PEAK: matmul_peak,
}


def numbers(result: Any) -> tuple[float, float]:
    """Loss and norm of the gradient, to verify that all compute the same."""
    loss, grad = result
    pieces = grad if isinstance(grad, (list, tuple)) else [grad]
    squares = sum(float(np.square(np.asarray(piece, dtype=np.float64)).sum()) for piece in pieces)
    return float(loss), math.sqrt(squares)


def serve(channel: Connection, way: str, name: str, threads: int) -> None:
    """One implementation in its own process, pinned to cores; evaluates as often as it is told."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["XLA_FLAGS"] = (
        "" if threads > 1 else "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    evaluate = WAYS[way](name)
    result = evaluate()
    channel.send(None if way == PEAK else numbers(result))
    while (count := channel.recv()) is not None:
        began = clock()
        for _ in range(count):
            evaluate()
        channel.send((clock() - began) / count)


def flops(name: str) -> int:
    evaluate = torch_way(name)
    with FlopCounterMode(display=False) as counter:
        evaluate()
    return counter.get_total_flops()


def compare(name: str, ways: list[str], threads: int, rounds: int, turn: float) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    channels: dict[str, Any] = {}
    processes = []
    for way in ways:
        channels[way], other = context.Pipe()
        process = context.Process(target=serve, args=(other, way, name, threads), daemon=True)
        process.start()
        processes.append(process)
    results = {way: channel.recv() for way, channel in channels.items()}
    for way, result in results.items():
        if way != PEAK and not np.allclose(result, results["torch"], rtol=1e-4):
            raise SystemExit(f"{name}: {way} computes {result}, torch {results['torch']}")

    def ask(way: str, count: int) -> float:
        channels[way].send(count)
        return channels[way].recv()

    counts = {way: max(1, round(turn / min(ask(way, 1), ask(way, 1)))) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            seconds[way].append(ask(way, counts[way]))
    for way, process in zip(ways, processes, strict=True):
        channels[way].send(None)
        process.join()
    return {"experiment": name, "flops": flops(name), "seconds": seconds}


def summarize(result: dict[str, Any]) -> dict[str, Any]:
    """Ratios of each way's time to ours, the median over the rounds."""
    seconds = result["seconds"]
    ours = seconds["isoloss"]
    ratios = {
        way: statistics.median(a / b for a, b in zip(times, ours, strict=True))
        for way, times in seconds.items()
        if way not in ("isoloss", PEAK)
    }
    peak = 2 * 1024**3 / min(seconds[PEAK])
    rate = result["flops"] / min(ours)
    return {
        "ratios": ratios,
        "best_of_others": min(ratios.values()),
        "milliseconds": 1e3 * min(ours),
        "gflops": rate / 1e9,
        "share_of_peak": rate / peak,
    }


def head(ways: list[str]) -> str:
    others = [way for way in ways if way not in ("isoloss", PEAK)]
    return (
        f"| experiment | isoloss, ms | GFLOP/s | of the peak | {' | '.join(others)} |\n"
        f"| --- | ---: | ---: | ---: |{' ---: |' * len(others)}"
    )


def row(name: str, figures: dict[str, Any]) -> str:
    times = " | ".join(f"{ratio:.2f}" for ratio in figures["ratios"].values())
    return (
        f"| {name} | {figures['milliseconds']:.3g} | {figures['gflops']:.0f} | "
        f"{figures['share_of_peak']:.0%} | {times} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", nargs="+", default=experiments.names())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turn", type=float, default=0.3, help="seconds per turn")
    arguments = parser.parse_args()
    ways = list(WAYS)
    if importlib.util.find_spec("jax") is None:
        ways.remove("JAX")
        print('JAX is not installed, so its column is missing; pip install "isoloss[benchmarks]"\n')
    clock = "CPU time" if arguments.threads == 1 else "wall-clock time"
    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": arguments.threads,
        "clock": clock,
        "rounds": arguments.rounds,
    }
    if "JAX" in ways:
        environment["jax"] = importlib.metadata.version("jax")
    print(f"{', '.join(f'{k} {v}' for k, v in environment.items())}\n\n{head(ways)}", flush=True)
    out = Path(__file__).parent / "out" / "gradient_speed.json"
    out.parent.mkdir(exist_ok=True)
    results = []
    for name in arguments.experiments:
        try:
            experiments.get(name).data(0)
        except IsolossError as error:
            print(f"\n{name} is left out: {error}\n")
            continue
        result = compare(name, ways, arguments.threads, arguments.rounds, arguments.turn)
        result["summary"] = summarize(result)
        results.append(result)
        print(row(name, result["summary"]), flush=True)
        out.write_text(json.dumps({"environment": environment, "results": results}, indent=2))
    print("\nThe last columns are times over isoloss's, medians of the rounds.")


if __name__ == "__main__":
    main()
