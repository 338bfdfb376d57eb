"""Evaluations that `paper` and `sqp` need, from the same starts.

For each seed: `paper` with the experiment's settings for its full number of predictor steps; then
`sqp` until R is as small as where `paper` ended, at rtol 1e-3 and at the reference's own tolerance
(1e-5 absolute). An evaluation is one full-batch loss and gradient, rejected trials included.
That tolerance is 2e-6 of MPG_FF's level, so there `sqp` runs in float64.

In addition: `sqp` in float64 to a KKT residual of 1e-3, on ten seeds of IRIS_FF and MPG_FF.

    python benchmarks/evaluations.py [--experiments NAME ...] [--seeds N] [--processes 2] [--reuse]

writes a table in Markdown to standard output, and benchmarks/out/evaluations.json, which grows as
walks end. Five seeds, or at most N. With --reuse the walks by `paper`, by far
the longest part, are taken from that file where it has them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from isoloss import SQP, Record, Stop, experiments, traverse

OUT = Path(__file__).parent / "out" / "evaluations.json"
SEEDS = {"IRIS_FF": 5, "MPG_FF": 5, "MNIST_FF": 5, "MNIST_CONV": 5}
CONVERGING = {"IRIS_FF": 10, "MPG_FF": 10}
CONVERGED = 1e-3
LIMIT = 3000
PAPER, LOOSE = "paper", "sqp at rtol 1e-3"
TIGHT, END = "sqp at 1e-5 absolute", "sqp to convergence, float64"


def walk(name: str, seed: int, method: object, rtol: float, dtype: torch.dtype, stop: Stop) -> dict:
    torch.set_num_threads(1)
    start = experiments.get(name).start(seed, dtype=dtype)
    path = traverse(
        start.problem,
        method=method,
        rtol=rtol,
        stop=stop,
        record=Record(points_every=10**9),
        progress=False,
    )
    first, last = path.steps.iloc[0], path.steps.iloc[-1]
    return {
        "level": path.level,
        "start": float(first["regularizer"]),
        "end": float(last["regularizer"]),
        "evaluations": int(last["evaluations"]),
        "steps": int(last["step"]),
        "kkt_residual": float(last["kkt_residual"]),
        "worst_level_error": float(path.steps["level_error"].abs().max()),
        "outcome": path.outcome.value,
    }


def compare(name: str, seed: int, paper: dict | None) -> dict:
    """`paper`, and `sqp` to the same R."""
    experiment = experiments.get(name)
    single, double = torch.float32, torch.float64
    if paper is None:
        paper = walk(name, seed, experiment.paper, 1e-3, single, Stop(steps=experiment.steps))
    own = experiment.paper.tolerance / paper["level"]
    target = Stop(regularizer_below=paper["end"], evaluations=LIMIT, kkt_residual=0, gain=0)
    precision = double if name == "MPG_FF" else single
    return {
        PAPER: paper,
        LOOSE: walk(name, seed, SQP(), 1e-3, single, target),
        TIGHT: walk(name, seed, SQP(), own, precision, target),
    }


def converge(name: str, seed: int) -> dict:
    """`sqp` to a KKT residual of 1e-3."""
    end = Stop(kkt_residual=CONVERGED, evaluations=LIMIT, gain=0)
    return {END: walk(name, seed, SQP(), 1e-3, torch.float64, end)}


def lines(results: dict[str, dict[str, dict]]) -> Iterator[str]:
    """The table, from results[NAME][walk][seed]."""
    yield "| experiment | walk | evaluations, each seed | paper's median over this one's |"
    yield "| --- | --- | ---: | ---: |"
    for name, walks in results.items():
        for kind in (PAPER, LOOSE, TIGHT, END):
            runs = [walks[kind][seed] for seed in sorted(walks.get(kind, {}), key=int)]
            if not runs:
                continue
            counts = [run["evaluations"] for run in runs]
            ratio = ""
            if kind in (LOOSE, TIGHT):
                reference = [run["evaluations"] for run in walks[PAPER].values()]
                ratio = f"{statistics.median(reference) / statistics.median(counts):.0f}"
            arrived = ("step_limit",) if kind == PAPER else ("regularizer_reached", "converged")
            missed = sum(run["outcome"] not in arrived for run in runs)
            note = f" ({missed} of {len(runs)} did not get there)" if missed else ""
            shown = " ".join(f"{count:,}" for count in counts)
            yield f"| {name} | {kind}{note} | {shown} | {ratio} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", nargs="+", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--reuse", action="store_true")
    arguments = parser.parse_args()
    earlier = json.loads(OUT.read_text())["results"] if arguments.reuse else {}
    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    results: dict[str, dict[str, dict]] = {name: {} for name in arguments.experiments}
    for name, found in earlier.items():  # kept, whatever is run now and how far it comes
        results[name] = {method: dict(runs) for method, runs in found.items()}
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        jobs = {}
        for name in arguments.experiments:
            papers = earlier.get(name, {}).get(PAPER, {})
            for seed in range(min(arguments.seeds, SEEDS[name])):
                jobs[pool.submit(compare, name, seed, papers.get(str(seed)))] = (name, seed)
            for seed in range(min(arguments.seeds, CONVERGING.get(name, 0))):
                jobs[pool.submit(converge, name, seed)] = (name, seed)
        for job in as_completed(jobs):
            name, seed = jobs[job]
            for kind, found in job.result().items():
                results[name].setdefault(kind, {})[str(seed)] = found
            OUT.parent.mkdir(exist_ok=True)
            OUT.write_text(json.dumps({"environment": environment, "results": results}, indent=2))
    print(f"torch {torch.__version__}, Python {platform.python_version()}\n")
    print("\n".join(lines({name: results[name] for name in arguments.experiments})))


if __name__ == "__main__":
    main()
