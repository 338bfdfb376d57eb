"""What else could an equally good network have predicted?

Shows `extent` and `different` on scikit-learn's breast cancer data: how far the log odds of single
patients go among networks of one training loss whose validation loss is no worse either, and three
such networks that disagree most about patients nobody has labeled. The intervals are drawn into
`multiplicity.png`.

    python examples/multiplicity.py [--quick]
"""

import sys

import torch
from sklearn.datasets import load_breast_cancer

import isoloss

QUICK = "--quick" in sys.argv
torch.manual_seed(0)

features, classes = load_breast_cancer(return_X_y=True)
inputs, targets = (
    torch.tensor((features - features.mean(0)) / features.std(0)),
    torch.tensor(classes, dtype=torch.float64)[:, None],
)
order = torch.randperm(len(targets))
train, held_out, pool = order[:200], order[200:450], order[450:]

model = torch.nn.Sequential(torch.nn.Linear(30, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(100):
    optimizer.zero_grad()
    torch.nn.functional.binary_cross_entropy_with_logits(
        model(inputs[train]), targets[train]
    ).backward()
    optimizer.step()

problem = isoloss.Problem(model, "bce_with_logits", (inputs[train], targets[train]))
validation = isoloss.Problem(model, "bce_with_logits", (inputs[held_out], targets[held_out]))
now = validation.loss(problem.current()).item()
hold = {"validation": isoloss.at_most(validation, 1.02 * now)}

# the log odds and not the probability, whose gradient vanishes near 0 and 1
quantities = {
    f"patient {k}": isoloss.Outputs(inputs[k : k + 1], lambda logits: logits.sum())
    for k in pool[: 2 if QUICK else 20].tolist()
}
intervals = isoloss.extent(
    problem,
    quantities,
    hold=hold,
    stop=isoloss.Stop(regularizer_below=-10, evaluations=12 if QUICK else 200),
)
figure = isoloss.report.extent_intervals(
    intervals,
    title="Breast cancer, training and validation loss held",
    label="log odds of a benign tumor",
)
figure.savefig("multiplicity.png")
either = ((intervals.table.low < 0) & (intervals.table.high > 0)).sum()
print(intervals.table[["start", "low", "high", "low_outcome", "high_outcome"]].round(2))
print(
    f"At the training loss {problem.loss(problem.current()):.4f} and a validation loss of at most "
    f"{1.02 * now:.4f}, {either} of {len(intervals)} patients can be given either label."
)

networks = isoloss.different(
    problem,
    inputs[pool],
    2 if QUICK else 3,
    hold=hold,
    stop=isoloss.Stop(evaluations=12 if QUICK else 100),
)
print(networks.table.round(4))
print(
    f"Some of {len(networks.ends)} such networks differ from the given one on "
    f"{networks.ambiguity:.1%} of {len(pool)} unlabeled patients (ambiguity), the farthest on "
    f"{networks.discrepancy:.1%} (discrepancy)."
)
