"""Flatness instead of norm: the trace of the Hessian as the regularizer.

Shows a walk toward the flattest network at a training loss next to one toward the smallest: is flat
the same as small, and which of the two has the lower test loss?

    python examples/flatness.py [--quick]
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
# exact, since the network has few parameters
trace = isoloss.regularizers.get_regularizer("hessian_trace", problem)

for regularizer in ("squared_norm", "hessian_trace"):
    path = isoloss.traverse(
        problem,
        regularizer=regularizer,
        probes={"test": held_out},
        stop=isoloss.Stop(kkt_residual=1e-2, steps=12 if QUICK else 120),
    )
    first, last = path.steps.iloc[0], path.steps.iloc[-1]
    flat = [trace.value_and_grad(point)[0].item() for point in (path.points[0], path.points[-1])]
    norm = [point.square().sum().item() for point in (path.points[0], path.points[-1])]
    print(path)
    print(
        f"Minimizing {regularizer} at the training loss {path.level:.3g}: trace of the Hessian "
        f"{flat[0]:.3g} to {flat[1]:.3g}, squared norm {norm[0]:.3g} to {norm[1]:.3g}, test "
        f"loss {first.test_loss:.3f} to {last.test_loss:.3f}."
    )
