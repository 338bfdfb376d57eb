"""The front of the L1 norm against the training loss on Iris, beside a published one.

Amakor, Sonntag and Peitz (arXiv:2308.12044) give the least L1 norm of a 4-4-4-3 tanh network, over
all 55 parameters, at eight mean cross-entropies of 30 examples. `isoloss.front` starts from
random weights, those of torch's default initialization by a seed, and every evaluation of loss and
gradient counts. Beside it, walks of their own at each level, each from the end of the one before,
up in loss. Norms are without smoothing.

    python benchmarks/front.py [--seeds 5]

writes a table in Markdown to standard output.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_iris
from torch import Tensor, nn

from isoloss import L1, Front, Problem, Stop, front, traverse

PUBLISHED = {
    0.0136: 20.00, 0.0843: 14.98, 0.2055: 12.00, 0.3409: 9.99,
    0.4889: 6.99, 0.6240: 5.00, 0.8705: 3.00, 1.0053: 2.00,
}  # fmt: skip
ROWS = (  # every fifth of a shuffled Iris
    *(82, 30, 123, 128, 66, 107, 21, 115, 106, 7, 23, 135, 46, 72, 89),
    *(97, 95, 111, 124, 25, 113, 100, 78, 18, 39, 55, 51, 99, 104, 17),
)
SMOOTHED = L1(smoothing=2e-3)
KKT = 1e-2


def iris(seed: int) -> Problem:
    data = load_iris()
    inputs = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0))[list(ROWS)]
    torch.manual_seed(seed)
    layers = (nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model = nn.Sequential(*layers).double()
    return Problem(model, "cross_entropy", (inputs, torch.tensor(data.target[list(ROWS)])))


def one_by_one(problem: Problem) -> tuple[list[float], int]:
    theta: Tensor | None = None
    norms, used = list[float](), 0
    for level in PUBLISHED:
        path = traverse(
            problem, start=theta, level=level, regularizer=SMOOTHED,
            stop=Stop(kkt_residual=KKT, evaluations=1000, gain=0), check=False, progress=False,
        )  # fmt: skip
        theta = path.points[-1]
        norms.append(theta.abs().sum().item())
        used += int(path.steps["evaluations"].iloc[-1])
    return norms, used


def best_norms(found: Front) -> list[float]:
    return found.points[found.best.index.to_list()].abs().sum(1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    fronts = [
        front(iris(seed), levels=PUBLISHED, regularizer=SMOOTHED, kkt=KKT, progress=False)
        for seed in seeds
    ]
    ours = [best_norms(one) for one in fronts]
    walks = [one_by_one(iris(seed)) for seed in seeds]
    print("| loss | published | `front`, worst seed | of published | walk by walk, worst seed |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for k, (level, norm) in enumerate(PUBLISHED.items()):
        worst = max(norms[k] for norms in ours)
        mine = max(norms[k] for norms, _ in walks)
        print(f"| {level} | {norm:.2f} | {worst:.3f} | {worst / norm:.4f} | {mine:.3f} |")
    totals = (sorted(one.evaluations for one in fronts), sorted(used for _, used in walks))
    spans = [f"{few} to {many}" for few, *_, many in totals]
    print(f"\nEvaluations in all: {spans[0]} of `front`, both directions; {spans[1]} walk by walk.")


if __name__ == "__main__":
    main()
