"""Regression with the Huber loss, which is robust to outliers.

Shows a loss with an option, and what a walk does in the presence of outliers: one in twenty targets
of the training set is far off. All points of the walk have the same training loss; the error is
measured against the noise-free curve.

    python examples/huber_regression.py [--quick]
"""

import sys

import torch

import isoloss

QUICK = "--quick" in sys.argv
torch.manual_seed(0)

inputs = torch.linspace(-3, 3, 120)[:, None]
curve = torch.sin(2 * inputs)
targets = curve + 0.1 * torch.randn(120, 1)
outliers = torch.rand(120, 1) < 0.05
targets[outliers] += 10 * torch.randn(int(outliers.sum()))
between = torch.linspace(-3, 3, 241)[:, None]

model = torch.nn.Sequential(
    torch.nn.Linear(1, 50),
    torch.nn.Tanh(),
    torch.nn.Linear(50, 50),
    torch.nn.Tanh(),
    torch.nn.Linear(50, 1),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(300 if QUICK else 3000):
    optimizer.zero_grad()
    torch.nn.functional.huber_loss(model(inputs), targets, delta=0.5).backward()
    optimizer.step()

problem = isoloss.Problem(
    model, isoloss.losses.Huber(delta=0.5), (inputs, targets), dtype=torch.float64
)
truth = isoloss.Problem(model, "mse", (between, torch.sin(2 * between)), dtype=torch.float64)
path = isoloss.traverse(
    problem,
    probes={"truth": truth},
    stop=isoloss.Stop(kkt_residual=1e-2, evaluations=100 if QUICK else 400),
)

first, last = path.steps.iloc[0], path.steps.iloc[-1]
print(path)
print(
    f"At a Huber loss of {path.level:.4f}, with {int(outliers.sum())} outliers among 120 targets: "
    f"the squared norm falls from {first.regularizer:.0f} to {last.regularizer:.0f}, the mean "
    f"squared error against the true curve goes from {first.truth_loss:.4f} to "
    f"{last.truth_loss:.4f}."
)
