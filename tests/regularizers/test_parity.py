"""Gaps between groups against the definition, in plain torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tests.problems import classifier, normal
from tests.regularizers.checks import assert_gradient_is_the_slope, value_at
from torch import Tensor, nn

import isoloss
from isoloss import ParityGap, Problem, Stop

POOL = normal(30, 3, seed=5)
GROUPS = (normal(30, seed=6) > 0.3).long()
LABELS = (normal(30, seed=7) > 0).long()


def rate(probabilities: np.ndarray, members: np.ndarray) -> float:
    return float(probabilities[members].mean())


@pytest.mark.parametrize("kind", ["demographic", "equal_opportunity"])
def test_it_is_the_squared_difference_of_the_rates(kind: str) -> None:
    net = classifier()
    targets = LABELS if kind == "equal_opportunity" else None
    gap = ParityGap(POOL, GROUPS, kind, targets=targets)
    chances = net.model(POOL).softmax(1)[:, 1].detach().numpy()
    counts = LABELS.numpy() == 1 if targets is not None else np.ones(30, dtype=bool)
    first, second = (rate(chances, (GROUPS.numpy() == g) & counts) for g in (0, 1))
    assert first != second
    for size in (None, 7):
        problem = net.problem(chunk_size=size)
        assert value_at(gap, problem) == pytest.approx((first - second) ** 2, rel=1e-12)
    assert_gradient_is_the_slope(gap, net.problem(chunk_size=7))
    assert gap.name == {"demographic": "parity_gap"}.get(kind, "opportunity_gap")


def test_more_groups_count_by_pairs_and_any_class_may_be_the_positive_one() -> None:
    net = classifier()
    groups = torch.arange(30) % 3 + 5
    chances = net.model(POOL).softmax(1)[:, 2].detach().numpy()
    rates = [rate(chances, groups.numpy() == g) for g in (5, 6, 7)]
    expected = np.mean([(a - b) ** 2 for a, b in itertools.combinations(rates, 2)])
    found = value_at(ParityGap(POOL, groups, positive=2), net.problem())
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_logit_is_taken_by_its_sigmoid_and_probabilities_as_one_says(shape) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(3, 1).double()
    problem = Problem(
        lambda p, x: (x @ p["w"]).reshape(shape),
        lambda outputs, _: outputs.flatten().square(),
        (normal(4, 3, seed=1), torch.zeros(4)),
        parameters={"w": layer.weight[0].detach()},
    )
    logits = POOL @ layer.weight[0]
    gaps = []
    for chances in (logits.sigmoid(), logits.tanh()):
        ours, theirs = (chances[g == GROUPS].mean() for g in (0, 1))
        gaps.append(((ours - theirs) ** 2).item())
    assert value_at(ParityGap(POOL, GROUPS), problem) == pytest.approx(gaps[0], rel=1e-12)
    assert value_at(ParityGap(POOL, GROUPS, positive=0), problem) == pytest.approx(gaps[0])
    own = ParityGap(POOL, GROUPS, probability=lambda outputs: outputs.flatten().tanh())
    assert value_at(own, problem) == pytest.approx(gaps[1], rel=1e-12)


def test_the_fairest_network_of_equal_loss_is_fairer() -> None:
    net = classifier()
    path = isoloss.traverse(
        net.problem(),
        regularizer=ParityGap(POOL, GROUPS),
        stop=Stop(regularizer_below=1e-6, steps=60),
        progress=False,
    )
    assert path.outcome is isoloss.Outcome.REGULARIZER_REACHED
    path.load_into(net.model)
    chances = net.model(POOL).softmax(1)[:, 1]
    assert abs(chances[GROUPS == 0].mean() - chances[GROUPS == 1].mean()) < 1e-3
    loss = nn.functional.cross_entropy(net.model(net.data[0]), net.data[1]).item()
    assert loss == pytest.approx(path.level, rel=1.1e-3)


def bad(**changes) -> dict:
    return {"inputs": POOL, "groups": GROUPS, **changes}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (bad(kind="demografic"), ("'demografic'", "did you mean demographic")),
        (bad(kind="equal_opportunity"), ("targets", "equal_opportunity", "give targets=")),
        (bad(targets=LABELS), ("takes none", "leave targets out")),
        (bad(groups=torch.zeros(30).long()), ("two groups", "[0]")),
        (bad(groups=GROUPS.double()), ("whole number", "float64", ".long()")),
        (bad(groups=GROUPS[:0]), ("whole number", "(0,)")),
        (bad(kind="equal_opportunity", targets=LABELS[:4]), ("as many", "4 and 30")),
        (
            bad(kind="equal_opportunity", targets=GROUPS),
            ("group 0", "no example of the positive class 1"),
        ),
        (bad(positive=-1), ("positive", "-1")),
        (bad(inputs=POOL[:0]), ("inputs of ParityGap", "(0, 3)")),
    ],
)
def test_groups_that_cannot_be_compared_are_refused(given, words, refuses) -> None:
    with refuses(*words):
        ParityGap(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (bad(inputs=POOL[:20]), ("each of the 30 examples", "(20,)")),
        (bad(positive=4), ("class 4", "(30, 4)", "probability=")),
        (bad(probability=lambda outputs: outputs), ("one probability", "(30, 4)")),
        (bad(probability=lambda outputs: [outputs]), ("one probability", "list")),
    ],
)
def test_outputs_that_do_not_fit_the_groups_are_refused(given, words, refuses) -> None:
    with refuses(*words):
        ParityGap(**given).bind(classifier().problem())


def test_structures_of_outputs_need_a_probability(refuses) -> None:
    class Dict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layer(x)}

    data = (normal(4, 3, seed=1), torch.zeros(4))
    problem = Problem(Dict().double(), lambda o, _: o["logits"].square().sum(1), data)
    with refuses("one tensor of logits", "probability="):
        ParityGap(POOL, GROUPS).bind(problem)
    own = ParityGap(POOL, GROUPS, probability=lambda o: o["logits"].softmax(1)[:, 0])
    assert value_at(own, problem) > 0
