"""A small network on scikit-learn's handwritten digits.

Shows basic use: train as you like, walk, compare. Of all the networks with the training loss that
Adam found, is the one of smallest norm better on unseen digits?

    python examples/digits_mlp.py [--quick]
"""

import sys

import torch
from sklearn.datasets import load_digits

import isoloss

QUICK = "--quick" in sys.argv
torch.manual_seed(0)

images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images / 16).float(), torch.tensor(labels)
train, test = slice(0, 1000), slice(1000, None)

model = torch.nn.Sequential(
    torch.nn.Linear(64, 100),
    torch.nn.Tanh(),
    torch.nn.Linear(100, 50),
    torch.nn.Tanh(),
    torch.nn.Linear(50, 10),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(50 if QUICK else 200):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs[train]), targets[train]).backward()
    optimizer.step()

problem = isoloss.Problem(model, "cross_entropy", (inputs[train], targets[train]))
held_out = isoloss.Problem(model, "cross_entropy", (inputs[test], targets[test]))
path = isoloss.traverse(
    problem,
    probes={"test": held_out},
    stop=isoloss.Stop(kkt_residual=1e-2, evaluations=40 if QUICK else 500),
)

first, last = path.steps.iloc[0], path.steps.iloc[-1]
print(path)
print(
    f"At a training loss of {path.level:.3g} the squared norm can be {last.regularizer:.0f} "
    f"instead of {first.regularizer:.0f}; the test loss goes from {first.test_loss:.3f} to "
    f"{last.test_loss:.3f} and the accuracy from {first.test_metric:.1%} to "
    f"{last.test_metric:.1%}."
)
