"""A project for isoloss. Put your model, loss and data in place of the two moons below.

isoloss check my_project.py:build       # is the loss fit to be walked?
isoloss traverse my_project.py:build    # train, then walk; results/ holds what comes out
isoloss report my_project.py:build      # figures, tables and a page
"""

import torch
from torch import nn

import isoloss


def moons(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy points on two half circles, and on which of them each lies."""
    source = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    side, angle = 1 - 2 * targets, torch.pi * torch.rand(count, generator=source)
    inputs = torch.stack([side * angle.cos() + targets, side * angle.sin() + 0.5 * targets], 1)
    return inputs + 0.2 * torch.randn(count, 2, generator=source), targets


def build(seed: int) -> tuple[isoloss.Problem, dict[str, isoloss.Problem]]:
    """Train a model and say what is to be walked: the same seed must give the same.

    Args:
        seed: Number of the run; torch's random numbers are seeded with it already.

    Returns:
        The training loss, and what to measure on the way, by name.
    """
    # data: tensors, a list of batches, or a DataLoader that does not shuffle
    inputs, targets = moons(200, seed)
    unseen = moons(1000, seed=10_000)

    # any module; any training
    model = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    model.eval()  # switches dropout and batch statistics off: the loss must be a function

    # a loss by name, an object such as isoloss.losses.Huber(delta=2), or a function of
    # (outputs, targets) that gives one loss per example
    problem = isoloss.Problem(model, "cross_entropy", (inputs, targets))
    probe = isoloss.Problem(model, "cross_entropy", unseen)
    return problem, {"test": probe}
