"""How far can one go without changing the training loss?

Shows `maximize` and a distance: the walk leads as far away from the trained weights as it can. The
distance has no gradient at the trained weights themselves, so the walk starts a small random step
away from them and is given the level to hold.

    python examples/distance.py [--quick]
"""

import sys

import torch
from sklearn.datasets import load_iris

import isoloss

QUICK = "--quick" in sys.argv
torch.manual_seed(0)

features, classes = load_iris(return_X_y=True)
inputs, targets = (
    torch.tensor((features - features.mean(0)) / features.std(0)),
    torch.tensor(classes),
)
model = torch.nn.Sequential(
    torch.nn.Linear(4, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3)
).double()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(200):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()

problem = isoloss.Problem(model, "cross_entropy", (inputs, targets))
trained = problem.current()
size = trained.norm()
path = isoloss.traverse(
    problem,
    start=trained + 1e-3 * size * torch.nn.functional.normalize(torch.randn_like(trained), dim=0),
    level=problem.loss(trained).item(),
    regularizer=isoloss.maximize(isoloss.SquaredNorm(center=trained)),
    stop=isoloss.Stop(evaluations=40 if QUICK else 200),
)

distance = (path.points[-1] - trained).norm()
print(path)
print(
    f"After {path.steps.step.iloc[-1]} steps, {distance / size:.3g} times the length of the "
    f"trained weight vector away, the training loss is {problem.loss(path.points[-1]):.6f}; at the "
    f"trained weights it was {problem.loss(trained):.6f} ({path.outcome.value})."
)
