"""A ResNet-18-like network with batch norm on CIFAR-10.

Shows what batch norm requires: put the model into eval mode, so that its statistics are constant
and the loss is a function of the weights. Its scales and shifts are walked with the rest.
Needs the official files of CIFAR-10: isoloss data fetch cifar10.

    python examples/resnet18_cifar10.py [--quick]
"""

import dataclasses
import sys

import torch
from torch import nn

import isoloss

QUICK = "--quick" in sys.argv
IMAGES, WIDTH, EPOCHS, EVALUATIONS = (100, 8, 12, 20) if QUICK else (1000, 16, 20, 200)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and before == after
            else nn.Conv2d(before, after, 1, stride)
        )

    def forward(self, x):
        """Images in, images out."""
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + self.shortcut(x)).relu()


def resnet18(width):
    """Eighteen layers with weights: a stem, four stages of two blocks, a head."""
    layers = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(4):
        for block in range(2):
            after = width * 2**stage
            layers.append(Block(before, after, 2 if stage and not block else 1))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


torch.manual_seed(0)
all_images = dataclasses.replace(isoloss.experiments.get("CIFAR10_CONV"), draw=None)
try:
    data = all_images.data(seed=0)
except isoloss.IsolossError as error:
    sys.exit(f"{error}; get CIFAR-10 with: isoloss data fetch cifar10")
inputs, targets = data.inputs[:IMAGES].clone(), data.targets[:IMAGES].clone()
test_inputs, test_targets = data.test_inputs[:IMAGES].clone(), data.test_targets[:IMAGES].clone()
del data  # all of CIFAR-10 in float32 takes 700 MB

model = resnet18(WIDTH)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
model.train()
for _ in range(EPOCHS):
    for batch in torch.randperm(IMAGES).split(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
model.eval()  # without this line isoloss refuses: batch statistics depend on more than the weights

problem = isoloss.Problem(model, "cross_entropy", (inputs, targets))
test = isoloss.Problem(model, "cross_entropy", (test_inputs, test_targets))
path = isoloss.traverse(
    problem, probes={"test": test}, stop=isoloss.Stop(kkt_residual=1e-2, evaluations=EVALUATIONS)
)

first, last = path.steps.iloc[0], path.steps.iloc[-1]
print(path)
print(
    f"{problem.size:,} parameters: the squared norm falls by "
    f"{1 - last.regularizer / first.regularizer:.0%} at the training loss {path.level:.3g} in "
    f"{last.evaluations} evaluations; the test loss goes from {first.test_loss:.3f} to "
    f"{last.test_loss:.3f}, the accuracy from {first.test_metric:.1%} to {last.test_metric:.1%}."
)
