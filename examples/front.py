"""The front: how small the norm can be at each training loss, beside what weight decay finds.

Trains with some penalties on scikit-learn's wine data, walks from level to level of the losses
these networks have, and draws both: is a smaller norm at the same loss a smaller test loss?

    python examples/front.py [--quick]
"""

import sys

import pandas as pd
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
train, test = order[:60], order[60:]


def trained(penalty: float) -> torch.nn.Module:
    torch.manual_seed(1)
    layers = torch.nn.Linear(13, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    model = torch.nn.Sequential(*layers).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(600):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs[train]), targets[train])
        norm = sum(p.square().sum() for p in model.parameters())
        (loss + penalty * norm).backward()
        optimizer.step()
    return model


penalties = (1e-3, 1e-2) if QUICK else (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
model = trained(penalties[0])
problem = isoloss.Problem(model, "cross_entropy", (inputs[train], targets[train]))
held_out = isoloss.Problem(model, "cross_entropy", (inputs[test], targets[test]))

rows = []
for penalty in penalties:
    theta = torch.cat([p.detach().flatten() for p in trained(penalty).parameters()])
    loss, norm = problem.loss(theta).item(), theta.square().sum().item()
    row = {"penalty": penalty, "train_loss": loss, "squared_norm": norm}
    rows.append({**row, "test_loss": held_out.evaluate(theta)[0]})
decay = pd.DataFrame(rows)

front = isoloss.front(problem, levels=decay["train_loss"], kkt=1e-2, probes={"test": held_out})
print(front)
best = front.best.set_index("level")
for row in rows:
    there = best.loc[row["train_loss"]]
    print(
        f"Penalty {row['penalty']:g}, training loss {row['train_loss']:.3g}: squared norm "
        f"{row['squared_norm']:.4g}, on the front {there['regularizer']:.4g}; test loss "
        f"{row['test_loss']:.3f} and {there['test_loss']:.3f}."
    )
print(f"At {len(front.folds)} of {len(best)} levels the way down ends elsewhere than the way up.")
isoloss.report.save(isoloss.report.front_panels(front, decay), ".", "front")
