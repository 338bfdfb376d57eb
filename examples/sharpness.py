"""The flattest and the sharpest network of one training loss, by a measure that no rescaling fools.

Shows two walks by adaptive sharpness, one down and one up: does the flatter of two networks of
equal training loss have the lower test loss?

    python examples/sharpness.py [--quick]
"""

import sys

import torch
from sklearn.datasets import load_wine

import isoloss

QUICK = "--quick" in sys.argv
torch.manual_seed(0)

features, classes = load_wine(return_X_y=True)
inputs, targets = (
    torch.tensor((features - features.mean(0)) / features.std(0)),
    torch.tensor(classes),
)
order = torch.randperm(len(targets))
train, test = order[:90], order[90:]

model = torch.nn.Sequential(torch.nn.Linear(13, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(150):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs[train]), targets[train]).backward()
    optimizer.step()

problem = isoloss.Problem(model, "cross_entropy", (inputs[train], targets[train]))
held_out = isoloss.Problem(model, "cross_entropy", (inputs[test], targets[test]))
sharpness = isoloss.AdaptiveSharpness(radius=0.1)  # a longer step ends beyond the hill

paths = {}
for what, sign in (("flattest", 1), ("sharpest", -1)):
    paths[what] = path = isoloss.traverse(
        problem,
        regularizer=sign * sharpness,
        probes={"test": held_out},
        stop=isoloss.Stop(steps=8 if QUICK else 60, regularizer_below=-1),  # of the sharpest
    )
    first, last = path.steps.iloc[0], path.steps.iloc[-1]
    print(
        f"The {what} network that the walk reached at the training loss {path.level:.3g}: "
        f"sharpness {sign * first.regularizer:.3g} to {sign * last.regularizer:.3g}, test loss "
        f"{first.test_loss:.3f} to {last.test_loss:.3f}, in {last.evaluations:.0f} evaluations."
    )
