"""How far predictions go among equally good networks, beside the searches of the field.

Breast cancer (scikit-learn), a 30-16-1 tanh network: the interval of the predicted probability of
each of 100 test points over all networks whose training loss is at most c + 0.01 and whose
validation loss is at most 1.02 times what it was. Four searches, all held to the same two bounds:

- isoloss: `isoloss.extent` of the log odds of all points at once;
- multiplicity 2.1.0 (PyPI): `viable_prediction_range`, which follows Adam on the score until a
  bound is crossed, for several step sizes;
- AWP-like: the adversarial weight perturbation of Hsu and Calmon (NeurIPS 2022), written here as
  normalized gradient steps on the score whose length is halved where a bound would be crossed;
- dropout: Gaussian noise on the weights (Hsu et al., ICLR 2024, arXiv:2402.00728), written here;
  1,000 networks for each of several strengths, those inside of both bounds kept.

Digits (scikit-learn), a 64-32-10 tanh network: five networks by `isoloss.different` beside five
retrained from other seeds and five by dropout, at equal bounds on training and validation loss.

Times are CPU times of one run on one thread; `isoloss[benchmarks]` brings multiplicity.

    python benchmarks/predictive_multiplicity.py [--points 100] [--evaluations 8 200]

writes tables in Markdown to standard output.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.special import expit
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
)
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import isoloss

EPSILON = 0.01
VALIDATION = 1.02
STEP_SIZES = ((1e-4, 100), (1e-3, 100), (1e-2, 100), (1e-4, 1000))
ENOUGH = 10.0
"""Log odds beyond which a probability is 0 or 1 to 5e-5."""
NETWORKS = 1000
STRENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2)
Data = tuple[Tensor, Tensor]
Intervals = np.ndarray


class Bounds:
    """Training and validation loss, and what both may be."""

    def __init__(
        self, model: nn.Module, loss: Callable[..., Tensor], train: Data, val: Data
    ) -> None:
        self.model, self.loss, self.train, self.val = model, loss, train, val
        self.c, self.v = self.losses(model)
        self.most = self.c + EPSILON, VALIDATION * self.v

    def losses(self, model: nn.Module) -> tuple[float, float]:
        with torch.no_grad():
            both = [self.loss(model(x), y).item() for x, y in (self.train, self.val)]
        return both[0], both[1]

    def excess(self, model: nn.Module) -> float:
        """1 at a bound, more beyond it."""
        loss, val = self.losses(model)
        return max(0.0, (loss - self.c) / EPSILON, (val - self.v) / (self.most[1] - self.v))

    def inside(self, model: nn.Module) -> bool:
        return self.excess(model) <= 1.0


def trained(model: nn.Module, loss: Callable[..., Tensor], data: Data, steps: int) -> nn.Module:
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        adam.zero_grad()
        loss(model(data[0]), data[1]).backward()
        adam.step()
    return model


def by_isoloss(
    bounds: Bounds, points: Tensor, evaluations: int, gain: float
) -> tuple[Intervals, str]:
    model = copy.deepcopy(bounds.model)
    problem = isoloss.Problem(model, "bce_with_logits", bounds.train)
    validation = isoloss.Problem(model, "bce_with_logits", bounds.val)
    quantities = {
        str(k): isoloss.Outputs(points[k : k + 1], lambda logits: logits.sum(), f"log odds {k}")
        for k in range(len(points))
    }
    # a tenth of a percent of room: ends are inside of both bounds to the last digit
    found = isoloss.extent(
        problem,
        quantities,
        level=isoloss.at_most(problem, bounds.most[0] / 1.001),
        hold={"validation": isoloss.at_most(validation, bounds.most[1] / 1.001)},
        stop=isoloss.Stop(regularizer_below=-ENOUGH, evaluations=evaluations),
        gain=gain,
        workers=1,
    )
    for one in found.values():
        for end in (one.low_end, one.high_end):
            end.path.load_into(model)
            assert bounds.inside(model), bounds.losses(model)
    logits = found.table[["low", "high"]].to_numpy()
    outcomes = found.table[["low_outcome", "high_outcome"]].stack().value_counts()
    used = int(found.table[["low_evaluations", "high_evaluations"]].to_numpy().sum())
    said = ", ".join(f"{name} {count}" for name, count in outcomes.items())
    return expit(logits), f"{used} evaluations; {said}"


def by_multiplicity(bounds: Bounds, points: Tensor, size: float, steps: int) -> Intervals:
    from multiplicity import torch as multiplicity

    chances = nn.Sequential(copy.deepcopy(bounds.model), nn.Sigmoid())
    found = [
        multiplicity.viable_prediction_range(
            model=chances,
            target_example=point[None],
            robustness_criterion=lambda model: bounds.excess(model[0]),
            criterion_thresholds=1.0,
            step_size=size,
            max_steps=steps,
        )
        for point in points
    ]
    return np.array([(float(low), float(high)) for low, _, high in found])


def by_awp(bounds: Bounds, points: Tensor, steps: int = 100) -> Intervals:
    model = copy.deepcopy(bounds.model)
    given = parameters_to_vector(model.parameters()).detach()
    found = np.empty((len(points), 2))
    for k, point in enumerate(points):
        for side, sign in enumerate((-1, 1)):
            theta, length = given.clone(), 0.05 * given.norm()
            for _ in range(steps):
                vector_to_parameters(theta, model.parameters())
                score = sign * model(point[None]).sum()
                slope = parameters_to_vector(torch.autograd.grad(score, list(model.parameters())))
                while length > 1e-4 * given.norm():
                    trial = theta + length * slope / slope.norm()
                    vector_to_parameters(trial, model.parameters())
                    if bounds.inside(model):
                        theta = trial
                        break
                    length = length / 2
                else:
                    break
            vector_to_parameters(theta, model.parameters())
            with torch.no_grad():
                found[k, side] = model(point[None]).sigmoid().item()
    return found


def by_dropout(bounds: Bounds, points: Tensor) -> Intervals:
    kept = [bounds.model, *noisy(bounds, NETWORKS)]
    with torch.no_grad():
        chances = torch.stack([model(points).sigmoid()[:, 0] for model in kept])
    return torch.stack([chances.amin(0), chances.amax(0)], 1).double().numpy()


def noisy(bounds: Bounds, count: int) -> list[nn.Module]:
    """Networks inside of both bounds whose weights are multiplied by Gaussian noise about 1."""
    given = parameters_to_vector(bounds.model.parameters()).detach()
    source, kept = torch.Generator().manual_seed(0), list[nn.Module]()
    trial = copy.deepcopy(bounds.model)
    for strength in STRENGTHS:
        for _ in range(count):
            noise = 1 + strength * torch.randn(len(given), generator=source)
            vector_to_parameters(given * noise, trial.parameters())
            if bounds.inside(trial):
                kept.append(copy.deepcopy(trial))
    return kept


def timed(search: Callable[[], Intervals]) -> tuple[Intervals, float]:
    began = time.process_time()
    found = search()
    return found, time.process_time() - began


def cancer(count: int, limits: Sequence[int], gain: float) -> None:
    features, classes = load_breast_cancer(return_X_y=True)
    inputs = torch.tensor((features - features.mean(0)) / features.std(0)).float()
    targets = torch.tensor(classes).float()[:, None]
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, val, test = order[:300], order[300:400], order[400 : 400 + count]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 1))
    loss = binary_cross_entropy_with_logits
    trained(model, loss, (inputs[train], targets[train]), 60)
    bounds = Bounds(model, loss, (inputs[train], targets[train]), (inputs[val], targets[val]))
    points = inputs[test]
    print(
        f"Breast cancer, {len(points)} points: training loss {bounds.c:.4f}, at most "
        f"{bounds.most[0]:.4f}; validation loss {bounds.v:.4f}, at most {bounds.most[1]:.4f}.\n"
    )
    print("| search | mean width | " + " | ".join(f"inside of {k}" for k in limits) + " | CPU s |")
    print("| --- |" + " --- |" * (2 + len(limits)))
    ours: list[Intervals] = []
    for limit in limits:
        (found, said), seconds = timed(lambda k=limit: by_isoloss(bounds, points, k, gain))
        ours.append(found)
        row(f"isoloss, {limit} evaluations a walk at most ({said})", found, [], limits, seconds)
    searches: dict[str, Callable[[], Intervals]] = {
        f"multiplicity, step size {size:g}, {steps} steps": (
            lambda size=size, steps=steps: by_multiplicity(bounds, points, size, steps)
        )
        for size, steps in STEP_SIZES
    }
    searches["AWP-like"] = lambda: by_awp(bounds, points)
    searches[f"dropout, {NETWORKS * len(STRENGTHS)} networks"] = lambda: by_dropout(bounds, points)
    for name, search in searches.items():
        theirs, seconds = timed(search)
        row(name, theirs, ours, limits, seconds)


def row(
    name: str, found: Intervals, ours: Sequence[Intervals], limits: Sequence[int], seconds: float
) -> None:
    inside = [
        str(((one[:, 0] <= found[:, 0] + 1e-3) & (one[:, 1] >= found[:, 1] - 1e-3)).sum())
        for one in ours
    ]
    counts = " | ".join(inside or [""] * len(limits))
    print(f"| {name} | {width(found):.3f} | {counts} | {seconds:.2f} |", flush=True)


def width(intervals: Intervals) -> float:
    return float(np.diff(intervals).mean())


def digits(count: int, evaluations: int) -> None:
    features, classes = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(features / 16).float(), torch.tensor(classes)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, val, pool, test = order[:500], order[500:800], order[800:1300], order[1300:]
    data, held = (inputs[train], targets[train]), (inputs[val], targets[val])

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))

    model = trained(network(0), cross_entropy, data, 80)
    bounds = Bounds(model, cross_entropy, data, held)

    def retrained() -> list[nn.Module]:
        found: list[nn.Module] = []
        for seed in range(1, count + 1):
            other = network(seed)
            while bounds.losses(other)[0] > bounds.most[0]:
                trained(other, cross_entropy, data, 5)
            found.append(other)
        return found

    began = time.process_time()
    others = retrained()
    times = {"retrained from other seeds": time.process_time() - began}
    # nobody may be worse than the worst of the retrained ones
    worst = max(bounds.losses(other)[1] for other in others)
    bounds.most = bounds.most[0], worst
    found = {"retrained from other seeds": others}
    began = time.process_time()
    kept = noisy(bounds, NETWORKS)
    rows = labels(kept, inputs[pool]) != labels([model], inputs[pool])
    farthest = rows.float().mean(1).argsort(descending=True)[:count]
    times[f"dropout, the {count} farthest of {len(kept)}"] = time.process_time() - began
    found[f"dropout, the {count} farthest of {len(kept)}"] = [kept[k] for k in farthest]
    problem = isoloss.Problem(model, "cross_entropy", data)
    validation = isoloss.Problem(model, "cross_entropy", held)
    for name, bound in (
        ("isoloss, validation held", worst),
        ("isoloss, validation not held", None),
    ):
        began = time.process_time()
        hold = None if bound is None else {"val": isoloss.at_most(validation, bound / 1.001)}
        different = isoloss.different(
            problem,
            inputs[pool],
            count,
            level=isoloss.at_most(problem, bounds.most[0] / 1.001),
            hold=hold,
            stop=isoloss.Stop(evaluations=evaluations),
            progress=False,
        )
        times[name] = time.process_time() - began
        found[name] = []
        for end in different.ends:
            other = network(0)
            end.path.load_into(other)
            assert bound is None or bounds.inside(other), bounds.losses(other)
            found[name].append(other)
    print(
        f"\nDigits: training loss at most {bounds.most[0]:.4f}, validation loss at most "
        f"{worst:.4f}; the given network's {bounds.c:.4f} and {bounds.v:.4f}; {len(pool)} inputs "
        f"in the pool.\n"
    )
    print("| networks | least to most apart from the given one | least between two | ambiguity | "
          "discrepancy | validation loss | test accuracy | CPU s |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, networks in found.items():
        each = labels([model, *networks], inputs[pool])
        apart = (each[:, None] != each[None]).float().mean(2)
        others = apart[1:, 1:][~torch.eye(len(networks), dtype=torch.bool)]
        ambiguity = (each[1:] != each[:1]).any(0).float().mean().item()
        losses = [bounds.losses(one)[1] for one in networks]
        right = (labels(networks, inputs[test]) == targets[test]).float().mean(1)
        print(
            f"| {name} | {apart[0, 1:].min():.3f} to {apart[0].max():.3f} | {others.min():.3f} | "
            f"{ambiguity:.3f} | {apart[0].max():.3f} | {min(losses):.3f} to {max(losses):.3f} | "
            f"{right.min():.3f} to {right.max():.3f} | {times[name]:.2f} |"
        )


def labels(networks: Sequence[nn.Module], inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([network(inputs).argmax(1) for network in networks])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[8, 200], help="of a walk")
    parser.add_argument("--gain", type=float, default=1e-3, help="as for isoloss.extent")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cancer(arguments.points, arguments.evaluations, arguments.gain)
    digits(5, max(arguments.evaluations))


if __name__ == "__main__":
    main()
