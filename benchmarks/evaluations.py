"""Evaluations that `paper` and `sqp` need, from the same starts.

For each seed: `paper` with the experiment's settings for its full number of predictor steps; then
`sqp` until R is as small as where `paper` ended, at rtol 1e-3 and at the reference's own tolerance
(1e-5 absolute). An evaluation is one full-batch loss and gradient, rejected trials included.
That tolerance is 2e-6 of MPG_FF's level, so there `sqp` runs in float64.

    python benchmarks/evaluations.py [--experiments NAME ...] [--seeds 5] [--converge]

writes a table in Markdown to standard output, and benchmarks/out/evaluations.json. With --converge
it also counts the evaluations of `sqp` in float64 down to a KKT residual of 1e-3. With --reuse the
walks by `paper`, most of the time by far, are taken from that file where it has them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from isoloss import SQP, Record, Stop, experiments, traverse

CONVERGED = 1e-3
LIMIT = 3000


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


def compare(name: str, seed: int, converge: bool, paper: dict | None) -> dict:
    experiment = experiments.get(name)
    single, double = torch.float32, torch.float64
    if paper is None:
        paper = walk(name, seed, experiment.paper, 1e-3, single, Stop(steps=experiment.steps))
    own = experiment.paper.tolerance / paper["level"]
    target = Stop(regularizer=paper["end"], evaluations=LIMIT, kkt_residual=0)
    result = {
        "experiment": name,
        "seed": seed,
        "paper": paper,
        "sqp at rtol 1e-3": walk(name, seed, SQP(), 1e-3, single, target),
        "sqp at 1e-5 absolute": walk(
            name, seed, SQP(), own, double if name == "MPG_FF" else single, target
        ),
    }
    if converge:
        end = Stop(kkt_residual=CONVERGED, evaluations=LIMIT)
        result["sqp to convergence, float64"] = walk(name, seed, SQP(), 1e-3, double, end)
    return result


def table(results: list[dict]) -> str:
    lines = [
        "| experiment | walk | evaluations, each seed | paper's evaluations over these, median |",
        "| --- | --- | ---: | ---: |",
    ]
    for name in dict.fromkeys(result["experiment"] for result in results):
        runs = [result for result in results if result["experiment"] == name]
        for walk_name in [key for key in runs[0] if key not in ("experiment", "seed")]:
            counts = [run[walk_name]["evaluations"] for run in runs]
            ratio = ""
            if "convergence" not in walk_name and walk_name != "paper":
                ratios = [
                    run["paper"]["evaluations"] / run[walk_name]["evaluations"] for run in runs
                ]
                ratio = f"{statistics.median(ratios):.0f}"
            missed = sum(
                run[walk_name]["outcome"] not in ("regularizer_reached", "converged")
                for run in runs
                if walk_name != "paper"
            )
            note = f" ({missed} of {len(runs)} did not get there)" if missed else ""
            shown = " ".join(f"{count:,}" for count in counts)
            lines.append(f"| {name} | {walk_name}{note} | {shown} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", nargs="+", default=["IRIS_FF", "MPG_FF", "MNIST_FF"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--converge", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--reuse", action="store_true")
    arguments = parser.parse_args()
    out = Path(__file__).parent / "out" / "evaluations.json"
    earlier = json.loads(out.read_text())["results"] if arguments.reuse else []
    papers = {(result["experiment"], result["seed"]): result["paper"] for result in earlier}
    jobs = [
        (name, seed, arguments.converge, papers.get((name, seed)))
        for name in arguments.experiments
        for seed in range(arguments.seeds)
    ]
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        futures = [pool.submit(compare, *job) for job in jobs]
        results = [future.result() for future in futures]
    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"environment": environment, "results": results}, indent=2))
    print(f"torch {torch.__version__}, Python {platform.python_version()}\n\n{table(results)}")


if __name__ == "__main__":
    main()
