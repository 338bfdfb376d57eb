"""The fairest and the least fair network of one training loss, without and with a validation loss.

Shows what a parity gap leaves open: a network predicts from blood values whether a patient's
diabetes gets worse; sex is no input. How far apart can the mean predictions for men and women be,
and how near, among networks that fit the training data equally well?

    python examples/fairness.py [--quick]
"""

import sys

import torch
from sklearn.datasets import load_diabetes

import isoloss

QUICK = "--quick" in sys.argv
torch.manual_seed(0)

table = load_diabetes()
sex = torch.tensor(table.data[:, 1] > 0)
features = torch.tensor(table.data[:, [0, *range(2, 10)]])
inputs = (features - features.mean(0)) / features.std(0)
worse = torch.tensor(table.target > 140).long()
order = torch.randperm(len(worse))
train, validation, test = order[:240], order[240:340], order[340:]

model = torch.nn.Sequential(
    torch.nn.Linear(9, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
).double()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(60):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs[train]), worse[train]).backward()
    optimizer.step()

problem, held_out, unseen = (
    isoloss.Problem(model, "cross_entropy", (inputs[part], worse[part]))
    for part in (train, validation, test)
)
gap = isoloss.ParityGap(inputs[train], sex[train])
on_test = isoloss.regularizers.get_regularizer(isoloss.ParityGap(inputs[test], sex[test]), problem)

print(f"{len(train)} patients, training loss {problem.loss(problem.current()).item():.3f}")
present = held_out.loss(held_out.current()).item()
no_worse = {"validation": isoloss.at_most(held_out, present)}
paths = {}
for what, regularizer in (("fairest", gap), ("least fair", isoloss.maximize(gap))):
    for also, hold in (("", None), (", validation loss held", no_worse)):
        paths[what + also] = path = isoloss.traverse(
            problem,
            regularizer=regularizer,
            hold=hold,
            probes={"validation": held_out, "test": unseen},
            stop=isoloss.Stop(
                steps=10 if QUICK else 60, regularizer_below=1e-8 if what == "fairest" else None
            ),
        )
        first, last = path.steps.iloc[0], path.steps.iloc[-1]
        gaps = [abs(row.regularizer) ** 0.5 for row in (first, last)]
        tested = [
            on_test.value_and_grad(point)[0].item() ** 0.5
            for point in (path.points[0], path.points[-1])
        ]
        print(
            f"The {what} network{also}: gap {gaps[0]:.3f} to {gaps[1]:.3f} on the training set, "
            f"{tested[0]:.3f} to {tested[1]:.3f} on the test set; "
            f"validation loss {first.validation_loss:.3f} to {last.validation_loss:.3f}, "
            f"test loss {first.test_loss:.3f} to {last.test_loss:.3f}."
        )
