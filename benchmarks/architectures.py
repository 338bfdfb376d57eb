"""Whether the smallest norm at a training loss generalizes better, beyond the paper's networks.

Small networks of several kinds are trained on 200 of scikit-learn's digits, 60 epochs of Adam, and
walked for 300 evaluations from where that ends. The other 1,597 digits are the test set; it is
also measured where R, the squared norm of all parameters, has fallen to half. Of networks with
norms it counts the channels whose scale the walk has brought to zero: below a hundredth of the
largest one of their norm. Setting these to zero exactly changes the training loss by `cut`, a share
of it.

    python benchmarks/architectures.py [--networks NAME ...] [--starts 10] [--out FOLDER]

prints a table in Markdown, means with 95 % bootstrap intervals of the paired changes and the
p-value of a t-test, and writes FOLDER/architectures.csv, a row per network and start, and a picture
of the changes, FOLDER/architectures.png.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from isoloss import Problem, Stop, traverse
from isoloss.report.statistics import paired_change
from zoo_networks import Recurrent, ViT, fit, resnet

TRAINED, EVALUATIONS = 200, 300
ZERO = 1e-2
"""Share of the largest scale of a norm below which a channel counts as gone."""


def dense(activation: type[nn.Module]) -> nn.Module:
    hidden = [nn.Linear(64, 96), activation(), nn.Linear(96, 96), activation()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(96, 10))


def convolutional(
    activation: type[nn.Module], norm: Callable[[int], nn.Module] = lambda _: nn.Identity()
) -> nn.Module:
    """Two convolutions with average pooling, and two dense layers."""
    parts: list[nn.Module] = []
    for before, after in ((1, 14), (14, 28)):
        parts += [nn.Conv2d(before, after, 3, 1, 1), norm(after), activation(), nn.AvgPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(112, 64), activation(), nn.Linear(64, 10))


class Rows(nn.Module):
    """The recurrent network of the zoo, over an image of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Recurrent()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x[:, 0])


FUSED = "convolutions, ReLU, batch norm fused"
"""Trained with batch norm, which the convolutions then take over: R has no scales of norms."""

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense, tanh": lambda: dense(nn.Tanh),
    "dense, ReLU": lambda: dense(nn.ReLU),
    "convolutions, tanh": lambda: convolutional(nn.Tanh),
    "convolutions, ReLU": lambda: convolutional(nn.ReLU),
    "convolutions, ReLU, batch norm": lambda: convolutional(nn.ReLU, nn.BatchNorm2d),
    FUSED: lambda: convolutional(nn.ReLU, nn.BatchNorm2d),
    "residual, ReLU": lambda: resnet(lambda _: nn.Identity()),
    "residual, ReLU, group norm": lambda: resnet(lambda width: nn.GroupNorm(7, width)),
    "residual, ReLU, batch norm": lambda: resnet(nn.BatchNorm2d),
    "LSTM": Rows,
    "vision transformer": ViT,
}


def trained(name: str, inputs: Tensor, targets: Tensor) -> nn.Module:
    model = NETWORKS[name]()
    fit(model, functional.cross_entropy, inputs, targets)
    model.eval()
    return fused(model) if name == FUSED else model


def fused(model: nn.Module) -> nn.Module:
    """The same function, with each batch norm a part of the convolution before it."""
    parts: list[nn.Module] = []
    for part in model.children():
        if isinstance(part, nn.BatchNorm2d) and isinstance(parts[-1], nn.Conv2d):
            parts[-1] = fuse_conv_bn_eval(parts[-1], part)
        else:
            parts.append(part)
    return nn.Sequential(*parts)


def without_vanishing_channels(model: nn.Module) -> tuple[int, int]:
    """Set the scales that count as gone to zero; how many channels there are, and how many went."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    gone = 0
    with torch.no_grad():
        for norm in norms:
            sizes = norm.weight.abs()
            zero = sizes < ZERO * sizes.max()
            norm.weight[zero] = 0
            gone += int(zero.sum())
    return sum(len(norm.weight) for norm in norms), gone


def row_of(job: tuple[str, int]) -> dict[str, Any]:
    """A row: one network from one start, before and after its walk."""
    name, seed = job
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.tensor(digits.images / 8 - 1, dtype=torch.float32)[order, None]
    classes = torch.tensor(digits.target)[order]
    inputs, targets = images[:TRAINED], classes[:TRAINED]
    model = trained(name, inputs, targets)
    problem = Problem(model, "cross_entropy", (inputs, targets))
    test = Problem(model, "cross_entropy", (images[TRAINED:], classes[TRAINED:]))
    path = traverse(
        problem, probes={"test": test}, stop=Stop(evaluations=EVALUATIONS, gain=0), progress=False
    )
    found: dict[str, Any] = {"network": name, "seed": seed, "parameters": problem.size}
    found["train_loss"] = path.level
    steps = path.steps
    first, last = steps.iloc[0], steps.iloc[-1]
    halved = steps[steps["regularizer"] <= first["regularizer"] / 2]
    middle = halved.iloc[0] if len(halved) else last * math.nan
    for place, row in (("start", first), ("half", middle), ("end", last)):
        for what in ("regularizer", "test_loss", "test_metric"):
            found[f"{what}_{place}"] = row[what]
    path.load_into(model)
    channels, gone = without_vanishing_channels(model)
    cut = problem.loss(problem.current()).item()
    return found | {"channels": channels, "gone": gone, "cut": cut / path.level - 1}


def picture(rows: pd.DataFrame, file: Path) -> None:
    """The changes to half of R and to the end, a line per network."""
    names = list(rows["network"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.42 * len(names) + 1.2), sharey=True)
    panels = (
        ("test_loss", 1, "change of the test loss"),
        ("test_metric", 100, "change of the accuracy, points"),
    )
    for ax, (what, unit, label) in zip(axes, panels, strict=True):
        for place, color, shift in (("half", "#9ecae1", -0.14), ("end", "#08519c", 0.14)):
            for k, name in enumerate(names):
                of = rows[rows["network"] == name]
                change = paired_change(unit * of[f"{what}_start"], unit * of[f"{what}_{place}"])
                ends = [[change.mean - change.low], [change.high - change.mean]]
                where = "at half of the norm" if place == "half" else "at the end"
                ax.errorbar(
                    change.mean, k + shift, xerr=ends, fmt="o", ms=5, color=color, capsize=2.5,
                    label=where if k == 0 else None,
                )  # fmt: skip
        ax.axvline(0, color="0.6", lw=0.8, zorder=0)
        ax.set_xlabel(label)
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[1].legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    jobs = [(name, seed) for name in arguments.networks for seed in range(arguments.starts)]
    with get_context("spawn").Pool() as pool:
        rows = pd.DataFrame(pool.imap(row_of, jobs))

    print(
        "| network | R, end / start | test loss: start, half, end | changes to half, to end | p |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, of in rows.groupby("network", sort=False):
        share = (of["regularizer_end"] / of["regularizer_start"]).mean()
        for what, unit, decimals in (("test_loss", 1, 3), ("test_metric", 100, 1)):
            places = [unit * of[f"{what}_{place}"] for place in ("start", "half", "end")]
            values = " ".join(f"{one.mean():.{decimals}f}" for one in places)
            changes = [paired_change(places[0], one) for one in places[1:]]
            told = ", ".join(
                f"{one.mean:+.{decimals}f} ({one.low:+.{decimals}f} to {one.high:+.{decimals}f})"
                for one in changes
            )
            tests = " ".join(f"{one.t_p:.1g}" for one in changes)
            print(f"| {name}, {what} | {share:.2f} | {values} | {told} | {tests} |")
    print("\n| network | channels | gone | loss when they are cut, at most off by |")
    print("| --- | ---: | ---: | ---: |")
    for name, of in rows[rows["channels"] > 0].groupby("network", sort=False):
        gone, off = of["gone"].mean(), of["cut"].abs().max()
        print(f"| {name} | {of['channels'].iloc[0]} | {gone:.1f} | {off:.1e} |")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        rows.to_csv(arguments.out / "architectures.csv", index=False, float_format="%.6g")
        picture(rows, arguments.out / "architectures.png")


if __name__ == "__main__":
    main()
