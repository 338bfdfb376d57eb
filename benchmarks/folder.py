"""CPU time and memory of planning, reading and reporting a folder, for ten times the runs.

A few real walks of a small network are made by `isoloss traverse`; the others are theirs with the
hidden units in another order and another seed, which changes no number but the weights', so that
`isoloss verify` finds them right. Each figure is of a fresh process, less that of its imports.

    python benchmarks/folder.py [--runs 10 100 1000] [--keep FOLDER] [--verify]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

PROJECT = """
import torch
from torch import nn
import isoloss

def rings(seed):
    angle, side = torch.rand(400) * 6.28, torch.arange(400) % 2
    ring = torch.stack([angle.cos(), angle.sin()], 1) * (1 + side)[:, None]
    inputs = ring + 0.35 * torch.randn(400, 2)
    model = nn.Sequential(nn.Linear(2, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[:200]), side[:200]).backward()
        optimizer.step()
    train, test = (
        isoloss.Problem(model, "cross_entropy", (inputs[rows], side[rows]))
        for rows in (slice(200), slice(200, 400))
    )
    return train, {"test": test}
"""
HIDDEN = 100
NAME = "rings.rings"
SOURCES = 8
IMPORTS = """
import resource, threading, time, isoloss, isoloss.report, isoloss.runs.walk, isoloss.cli
import jinja2, matplotlib.backends.backend_agg, matplotlib.backends.backend_pdf, plotly.offline
import mpl_toolkits.mplot3d, scipy.stats, pyarrow.parquet
def anonymous():  # without the pages of files, which the system takes back when it needs them
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))
def watch():
    while True:
        sizes[0] = max(sizes[0], anonymous())
        time.sleep(0.02)
def seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
sizes = [anonymous()]
began, least = seconds(), anonymous()
threading.Thread(target=watch, daemon=True).start()
"""
WORK = {
    "plan": "isoloss.cli.app(['traverse', project, '--runs', runs, '--out', out],"
    " standalone_mode=False)",
    "read": "read = isoloss.open_results(out).paths(name, 'sqp'); assert len(read) == int(runs)",
    "report": "isoloss.report.report(isoloss.open_results(out), name)",
}
AFTER = """
print("\\n=", seconds() - began, max(sizes[0], anonymous()) - least)
"""


def sealed(file: Path, content: dict[str, object]) -> None:
    """Write JSON as docs/formats.md says: with the SHA-256 of the rest at its end."""
    content.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(content, indent=2).encode()).hexdigest()
    file.write_text(json.dumps({**content, "sha256": digest}, indent=2) + "\n", encoding="utf-8")


def copy(source: Path, target: Path, seed: int) -> None:
    """A run as another seed would have given it, with the hidden units in another order."""
    target.mkdir(parents=True)
    shutil.copy(source / "steps.parquet", target)
    with safe_open(source / "points.safetensors", "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    order = torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(seed))
    number = torch.arange(tensors["points"].shape[1])
    into, bias, out, last = number.split([2 * HIDDEN, HIDDEN, 2 * HIDDEN, 2])
    into, out = into.view(HIDDEN, 2)[order].flatten(), out.view(2, HIDDEN)[:, order].flatten()
    moved = tensors["points"][:, torch.cat([into, bias[order], out, last])]
    save_file({**tensors, "points": moved.contiguous()}, target / "points.safetensors", about)
    config = json.loads((source / "config.json").read_text())
    config["config"]["seed"] = seed
    sealed(target / "config.json", config)
    ending = json.loads((source / "outcome.json").read_text())
    text = json.dumps(config["config"], sort_keys=True)
    ending["config"] = hashlib.sha256(text.encode()).hexdigest()
    content = (target / "points.safetensors").read_bytes()
    ending["files"]["points.safetensors"] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    sealed(target / "outcome.json", ending)


def isoloss(*words: str) -> None:
    """Run a command, quietly."""
    command = [sys.executable, "-m", "isoloss", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def cost(work: str, project: Path, out: Path, runs: int) -> tuple[float, float]:
    """CPU seconds and MB that a fresh process uses for it, beyond its imports."""
    given = f"project, out, name, runs = {str(project)!r}, {str(out)!r}, {NAME!r}, {str(runs)!r}"
    code = "\n".join([IMPORTS, given, WORK[work], AFTER])
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seconds, size = done.stdout.rpartition("\n= ")[2].split()
    return float(seconds), float(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--work", nargs="+", choices=WORK, default=[*WORK])
    parser.add_argument("--keep", type=Path, help="where to make the folders, or where they are")
    parser.add_argument("--verify", action="store_true", help="call isoloss verify on each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = (arguments.keep or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        project = place / "rings.py"
        if not project.exists():
            project.write_text(PROJECT.replace("HIDDEN", str(HIDDEN)))
        sources = place / "sources"
        isoloss("traverse", f"{project}:rings", "--runs", str(SOURCES), "--out", str(sources))
        print("| runs | MB | " + " | ".join(f"{one}: CPU s | MB" for one in arguments.work) + " |")
        print("| ---: | ---: |" + " ---: | ---: |" * len(arguments.work))
        before: list[float] = []
        for runs in arguments.runs:
            out = place / str(runs)
            for k in range(runs):
                folder = Path(NAME, "traverse", "sqp", f"run-{k:03d}")
                if not (out / folder).exists():
                    copy(sources / folder.with_name(f"run-{k % SOURCES:03d}"), out / folder, k)
            if arguments.verify:
                isoloss("verify", str(out))
            costs = [cost(work, Path(f"{project}:rings"), out, runs) for work in arguments.work]
            size = sum(file.stat().st_size for file in (out / NAME).rglob("*.*") if file.is_file())
            values = [size / 1e6, *(value for pair in costs for value in pair)]
            print(f"| {runs} | " + " | ".join(f"{value:.3g}" for value in values) + " |")
            if before:
                ratios = [now / max(then, 1e-9) for now, then in zip(values, before, strict=True)]
                print("| ratio | " + " | ".join(f"x {ratio:.2g}" for ratio in ratios) + " |")
            before = values


if __name__ == "__main__":
    main()
