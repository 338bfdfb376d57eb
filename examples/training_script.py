"""A user's training script with five lines added, marked with # isoloss.

Shows what it takes to add a walk to an existing script with a DataLoader: nothing before the end
changes.

    python examples/training_script.py [--quick]
"""

import sys

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import isoloss  # isoloss

EPOCHS = 10 if "--quick" in sys.argv else 60

torch.manual_seed(0)
features, labels = load_breast_cancer(return_X_y=True)
features = (features - features.mean(0)) / features.std(0)
dataset = TensorDataset(torch.tensor(features).float(), torch.tensor(labels))
train_set, test_set = torch.utils.data.random_split(dataset, [400, 169])
loader = DataLoader(train_set, batch_size=32, shuffle=True)

model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 2))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _epoch in range(EPOCHS):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

model.eval()
data = list(DataLoader(train_set, batch_size=400))  # isoloss: the same examples, in a fixed order
problem = isoloss.Problem(model, "cross_entropy", data)  # isoloss
path = isoloss.traverse(problem, stop=isoloss.Stop(kkt_residual=1e-2, evaluations=200))  # isoloss
path.load_into(model)  # isoloss

x, y = next(iter(DataLoader(test_set, batch_size=169)))
print(path)
print(
    "The squared norm of the model is now "
    f"{1 - path.steps.regularizer.iloc[-1] / path.steps.regularizer.iloc[0]:.0%} smaller at the "
    f"same training loss, {criterion(model(data[0][0]), data[0][1]):.4f}; it classifies "
    f"{(model(x).argmax(1) == y).float().mean():.1%} of the test set correctly."
)
