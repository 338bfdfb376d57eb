"""A project for isoloss. Put your model, loss and data in place of the digits below.

isoloss check my_project.py:build       # is the loss fit to be walked?
isoloss traverse my_project.py:build    # train, then walk; results/ holds what comes out
isoloss report my_project.py:build      # figures, tables and a page
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import isoloss


def build(seed: int) -> tuple[isoloss.Problem, dict[str, isoloss.Problem]]:
    """Train a model and say what is to be walked: the same seed must give the same.

    Args:
        seed: Number of the run; torch's random numbers are seeded with it already.

    Returns:
        The training loss, and what to measure on the way, by name.
    """
    # data: tensors, a list of batches, or a DataLoader that does not shuffle
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16).float(), torch.tensor(labels)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1000], order[1000:]

    # any module; any training
    model = nn.Sequential(nn.Linear(64, 50), nn.Tanh(), nn.Linear(50, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[train]), targets[train]).backward()
        optimizer.step()
    model.eval()  # switches dropout and batch statistics off: the loss must be a function

    # a loss by name, an object such as isoloss.losses.Huber(delta=2), or a function of
    # (outputs, targets) that gives one loss per example
    problem = isoloss.Problem(model, "cross_entropy", (inputs[train], targets[train]))
    probe = isoloss.Problem(model, "cross_entropy", (inputs[test], targets[test]))
    return problem, {"test": probe}
