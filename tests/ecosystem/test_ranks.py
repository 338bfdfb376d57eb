"""A model and a loader that Accelerate or Fabric prepared for two processes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.problems import uninformed

import isoloss

SCRIPT = """
import sys
import torch
from torch import distributed as dist
from torch.utils.data import DataLoader, TensorDataset
import isoloss
import tests.ecosystem.conftest  # torchvision's operators
from tests.ecosystem.test_ranks import classifier, examples

model, data = classifier(), TensorDataset(*examples(int(sys.argv[2])))
loader = DataLoader(data, batch_size=6)
if sys.argv[1] == "accelerate":
    from accelerate import Accelerator
    model, loader = Accelerator(cpu=True).prepare(model, loader)
else:
    try:
        from lightning.fabric import Fabric
    except ImportError:
        from lightning_fabric import Fabric
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    model, loader = fabric.setup(model), fabric.setup_dataloaders(loader)
try:
    problem = isoloss.Problem(model, "cross_entropy", loader, group=dist.group.WORLD)
    path = isoloss.traverse(problem, stop=isoloss.Stop(steps=4), progress=False)
    path.load_into(model)
    path.save(f"walk{dist.get_rank()}")
except isoloss.InputError as error:
    print(error)
dist.barrier()
dist.destroy_process_group()
"""


def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).long()


def classifier() -> torch.nn.Module:
    torch.manual_seed(0)
    norm, tanh = torch.nn.LayerNorm(8), torch.nn.Tanh()
    return torch.nn.Sequential(torch.nn.Linear(5, 8), norm, tanh, torch.nn.Linear(8, 2)).double()


@pytest.mark.slow
@pytest.mark.parametrize("by", [("accelerate",), ("lightning", "lightning_fabric")])
def test_a_prepared_model_and_loader(by: tuple[str, ...], tmp_path: Path) -> None:
    if not any(map(importlib.util.find_spec, by)):
        pytest.skip(f"{by[0]} is not installed")
    (tmp_path / "script.py").write_text(SCRIPT, "utf-8")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def said(count: int) -> str:
        command = [*run, "script.py", by[0], str(count)]
        given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        roots = [Path(__file__).parents[2], *map(Path, given)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(one.resolve()) for one in roots)}
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        return done.stdout + done.stderr

    said(36)
    alone = isoloss.Problem(classifier(), "cross_entropy", examples(36))
    # one process knows more of the Hessian than several
    expected = isoloss.traverse(uninformed(alone), stop=isoloss.Stop(steps=4), progress=False)
    paths = [isoloss.Path.load(tmp_path / f"walk{rank}") for rank in range(2)]
    for path in paths:
        np.testing.assert_allclose(path.points, expected.points, rtol=1e-8, atol=1e-10)
    assert paths[0].points.equal(paths[1].points)
    assert "repeats" in said(37)
