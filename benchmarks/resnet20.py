"""A ResNet-20 of over a million parameters, trained on 5,000 images of CIFAR-10 and walked.

The network is written here after torchvision's ResNet: a 7x7 stem of stride 2 and a pool of stride
2, three stages of three basic blocks with batch norm, 32, 64 and 128 channels, or of another width.
It is trained by torch.optim.Adam on normalized images, put into eval mode, and walked by
`isoloss.SQP` toward a smaller squared norm. Then the loss of every point is recomputed in float64.

    python benchmarks/resnet20.py [--images 5000] [--width 32] [--epochs 12] [--evaluations 120]
                                  [--memory M] [--seed 0] [--out FOLDER]

The data is looked for in $ISOLOSS_DATA. The trained weights and the walk are left in the folder; a
second call does not repeat the training.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from isoloss import SQP, Problem, Record, Stop, experiments, traverse


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential()
        if stride > 1 or before != after:
            shortcut = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


def resnet20(width: int = 32, classes: int = 10) -> nn.Sequential:
    """Twenty layers with weights: the stem, three stages of three blocks, the head."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    before = width
    for stage in range(3):
        for block in range(3):
            after = width * 2**stage
            layers.append(BasicBlock(before, after, 2 if stage and not block else 1))
            before = after
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)]
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def train(network: nn.Module, inputs: Tensor, targets: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    network.train()
    for epoch in range(epochs):
        began, total = time.process_time(), 0.0
        for batch in torch.randperm(len(inputs)).split(50):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        seconds = time.process_time() - began
        print(f"epoch {epoch}: loss {total / len(inputs):.4f}, {seconds:.0f} s", flush=True)
    network.eval()


def memory_gib(field: str) -> float:
    """VmRSS, what the process holds now, or VmHWM, the most it held since `forget_peak()`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith(field))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # Linux: see proc(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--width", type=int, default=32, help="channels of the first stage")
    parser.add_argument("--memory", type=int, help="of `sqp`; its default where not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/resnet20"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)

    experiment = dataclasses.replace(experiments.get("CIFAR10_CONV"), draw=arguments.images)
    drawn = experiment.data(seed=arguments.seed)
    inputs, targets = drawn.inputs, drawn.targets
    mean, std = inputs.mean((0, 2, 3), keepdim=True), inputs.std((0, 2, 3), keepdim=True)
    inputs = ((inputs - mean) / std).contiguous(memory_format=torch.channels_last)
    test_pixels = drawn.test_inputs[: arguments.test_images]
    test_targets = drawn.test_targets[: arguments.test_images]
    del drawn

    network = resnet20(arguments.width).to(memory_format=torch.channels_last)
    weights = arguments.out / "trained.safetensors"
    if weights.exists():
        network.load_state_dict(load_file(weights))
        network.eval()
    else:
        train(network, inputs, targets, arguments.epochs)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, weights)

    problem = Problem(network, "cross_entropy", (inputs, targets))
    test = Problem(network, "cross_entropy", ((test_pixels - mean) / std, test_targets))
    spent = {"evaluations": 0.0, "probes": 0.0}

    def timed(owner: Problem, method: str, what: str) -> None:
        function = getattr(owner, method)

        def run(theta: Tensor) -> object:
            began = time.process_time()
            result = function(theta)
            spent[what] += time.process_time() - began
            return result

        setattr(owner, method, run)

    for method in ("loss_and_grad", "rough"):
        timed(problem, method, "evaluations")
    timed(test, "evaluate", "probes")
    forget_peak()
    ready_gib = memory_gib("VmRSS")
    began = time.process_time()
    path = traverse(
        problem,
        method=SQP(memory=arguments.memory),
        stop=Stop(evaluations=arguments.evaluations),
        record=Record(probes_every=10, points_at_most=None),
        probes={"test": test},
        callback=lambda row: print(
            f"{row['evaluations']} evaluations: loss {row['loss']:.6f}, "
            f"R {row['regularizer']:.1f}, KKT {row['kkt_residual']:.3f}",
            flush=True,
        ),
        progress=False,
    )
    whole_seconds = time.process_time() - began
    walk_gib = memory_gib("VmHWM")
    path.steps.to_parquet(arguments.out / "steps.parquet")
    save_file({"points": path.points}, arguments.out / "points.safetensors")

    exact = problem.with_dtype(torch.float64)
    losses = [exact.loss(theta.double()).item() for theta in path.points]
    error = max(abs(loss / path.level - 1) for loss in losses)
    first, last = path.steps.iloc[0], path.steps.iloc[-1]
    report = {
        "parameters": problem.size,
        "images": arguments.images,
        "epochs": arguments.epochs,
        "level": path.level,
        "squared_norm": [first["regularizer"], last["regularizer"]],
        "fall": 1 - last["regularizer"] / first["regularizer"],
        "kkt_residual": [first["kkt_residual"], last["kkt_residual"]],
        "test_loss": [first["test_loss"], last["test_loss"]],
        "test_accuracy": [first["test_metric"], last["test_metric"]],
        "evaluations": int(last["evaluations"]),
        "steps": len(path.steps) - 1,
        "points_checked_in_float64": len(losses),
        "largest_level_error_in_float64": error,
        "outcome": path.outcome.value,
        "cpu_seconds": {**spent, "rest": whole_seconds - sum(spent.values())},
        "memory_gib": {"before the walk": ready_gib, "at most in it": walk_gib},
        "vector_mib": problem.size * 4 / 2**20,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
        "torch": torch.__version__,
    }
    text = json.dumps(report, indent=2)
    (arguments.out / "resnet20.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
