"""Logistic regression, checked against scikit-learn.

Shows that a walk ends at a network that weight decay would have found: where the walk has
converged, the weights are those of scikit-learn's LogisticRegression at the penalty that the walk
reports, `equivalent_penalty`. The loss is convex here, so there is only one such point.

    python examples/logistic_regression.py [--quick]
"""

import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import isoloss

features, classes = load_iris(return_X_y=True)
features = (features - features.mean(0)) / features.std(0)
inputs, targets = torch.tensor(features), torch.tensor(classes)

torch.manual_seed(0)
model = torch.nn.Linear(4, 3).double()
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
for _ in range(100):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()

problem = isoloss.Problem(model, "cross_entropy", (inputs, targets))
path = isoloss.traverse(
    problem,
    regularizer=isoloss.SquaredNorm(without_biases=True),  # scikit-learn does not penalize them
    rtol=1e-8,
    stop=isoloss.Stop(kkt_residual=1e-7),
)
path.load_into(model)

# L + penalty |W|^2 is scikit-learn's |W|^2 / 2 + C sum of losses with this C
penalty = path.steps["equivalent_penalty"].iloc[-1]
theirs = LogisticRegression(C=1 / (2 * penalty * len(targets)), tol=1e-12, max_iter=10_000).fit(
    features, classes
)
difference = abs(model.weight.detach().numpy() - theirs.coef_).max()

print(path)
print(
    f"The walk ends at the weight decay of penalty {penalty:.5g}; scikit-learn's weights at C "
    f"= {theirs.C:.5g} differ from its end by at most {difference:.1e}, for weights up to "
    f"{abs(theirs.coef_).max():.2f}."
)
