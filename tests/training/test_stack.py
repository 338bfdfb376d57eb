"""A stack of networks against each of them trained alone by plain torch."""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional

from isoloss import InputError
from isoloss.flat import flatten
from isoloss.losses import accuracy, mse
from isoloss.training import Training
from isoloss.training.gradients import ByHand, Chain, OneByOne, Vectorized, best_gradients

PENALTIES = (0.0, 1e-3, 1.0, 1e6)


def tanh_chain():
    return nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4))


def rectified():
    return nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 4))


def convolutional():
    layers = [nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(nn.Unflatten(1, (1, 6, 6)), *layers)


def plain_convolutional():
    layers = [nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(*layers)


MODELS = {
    "by hand": (plain_convolutional, (1, 6, 6)),
    "chain": (tanh_chain, 3),
    "any": (rectified, 3),
    "images": (convolutional, 36),
}


def examples(count, features, seed=1, members=None):
    generator = torch.Generator().manual_seed(seed)
    shape = (count,) if members is None else (members, count)
    features = features if isinstance(features, tuple) else (features,)
    inputs = torch.randn(*shape, *features, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(4, shape, generator=generator)


def starts(build, members):
    torch.manual_seed(0)
    return [build().double() for _ in range(members)]


def theta_of(model):
    return flatten(list(model.parameters()))


def by_plain_torch(model, loss, inputs, targets, penalty, epochs, include_biases=False):
    """The reference: one network, the penalty written into the loss, Adam's formula by hand."""
    parameters = list(model.parameters())
    m, v, t = [0.0] * len(parameters), [0.0] * len(parameters), 0
    for _ in range(epochs):
        for first in range(0, len(targets), 32):
            rows = slice(first, first + 32)
            total = loss(model(inputs[rows]), targets[rows]).mean()
            for p in parameters:
                if p.ndim > 1 or include_biases:
                    total = total + penalty * p.square().sum()
            gradients = torch.autograd.grad(total, parameters)
            t += 1
            rate = 1e-3 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            for k, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g**2
                p.data -= rate * m[k] / (v[k].sqrt() + 1e-7)
    return theta_of(model)


def cross_entropy(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="none")


def stacked(models, loss, inputs, targets, epochs, **options):
    training = Training(models[0], loss, inputs, targets, **options)
    state = training.init(torch.stack([theta_of(model) for model in models]))
    for _ in range(epochs):
        training.epoch(state)
    return training, state


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("include_biases", [False, True])
def test_members_are_the_networks_trained_alone(kind, include_biases):
    build, features = MODELS[kind]
    models = starts(build, 4)
    inputs, targets = examples(70, features)
    training, state = stacked(
        models, "cross_entropy", inputs, targets, 4,
        penalties=PENALTIES, include_biases=include_biases,
    )  # fmt: skip
    for ours, model, penalty in zip(training.thetas(state), models, PENALTIES, strict=True):
        alone = by_plain_torch(model, cross_entropy, inputs, targets, penalty, 4, include_biases)
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", MODELS)
def test_in_single_precision_members_agree_to_rounding(kind):
    build, features = MODELS[kind]
    models = [model.float() for model in starts(build, 4)]
    inputs, targets = examples(70, features)
    training, state = stacked(
        models, "cross_entropy", inputs.float(), targets, 2, penalties=PENALTIES
    )
    for ours, model, penalty in zip(training.thetas(state), models, PENALTIES, strict=True):
        alone = by_plain_torch(model, cross_entropy, inputs.float(), targets, penalty, 2)
        # six steps of 1e-3, whose direction a gradient near zero may take from its rounding
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_members_may_have_examples_of_their_own(kind):
    build, features = MODELS[kind]
    models = starts(build, 3)
    inputs, targets = examples(40, features, members=3)
    training, state = stacked(
        models, "cross_entropy", inputs, targets, 2, penalties=(0, 1, 2), own_examples=True
    )
    for k, (ours, model) in enumerate(zip(training.thetas(state), models, strict=True)):
        alone = by_plain_torch(model, cross_entropy, inputs[k], targets[k], k, 2)
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-10)


def squared(outputs, targets):
    return (outputs - targets).square().mean(1)


@pytest.mark.parametrize("loss", ["mse", squared])
def test_regression_and_a_loss_of_the_users_own(loss):
    models = starts(tanh_chain, 2)
    inputs, _ = examples(50, 3)
    targets = torch.stack([inputs.sum(1), *inputs.T], 1)
    training, state = stacked(models, loss, inputs, targets, 3, penalties=(0, 0.1))
    for ours, model, penalty in zip(training.thetas(state), models, (0, 0.1), strict=True):
        alone = by_plain_torch(model, squared, inputs, targets, penalty, 3)
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-10)


@given(
    members=st.integers(1, 4),
    hidden=st.lists(st.integers(1, 6), max_size=3),
    count=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_gradients_by_hand_are_those_of_automatic_differentiation(members, hidden, count, seed):
    sizes = [2, *hidden, 3]
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parameters = {name: random(members, *p.shape) for name, p in model.named_parameters()}
    inputs, targets = random(members, count, 2), random(members, count, 3)
    found = []
    for way in (best_gradients(model, mse, members, (count, 2)), OneByOne(model, mse)):
        into = {name: torch.empty_like(p) for name, p in parameters.items()}
        way.gradient(parameters, inputs, targets, into)
        found.append(into)
        torch.testing.assert_close(way.outputs(parameters, inputs).shape, (members, count, 3))
    for name in parameters:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-10, atol=1e-12)


class Doubled(nn.Sequential):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


def hooked():
    model = tanh_chain()
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def shared():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


def frozen():
    model = tanh_chain()
    model[2].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "build",
    [
        rectified,
        hooked,
        shared,
        frozen,
        lambda: Doubled(nn.Linear(3, 3)),
        lambda: nn.Sequential(nn.Linear(3, 3, bias=False)),
        lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 3)),
    ],
)
def test_what_is_no_plain_chain_is_not_taken_for_one(build):
    assert not isinstance(best_gradients(build(), mse, 2, (4, 3)), Chain)


def test_ways_are_chosen_by_kind():
    ways = [
        (tanh_chain, 2, (4, 3), Chain),
        (tanh_chain, 1, (4, 3), Chain),
        (tanh_chain, 2, (4, 5, 3), Vectorized),
        (rectified, 2, (4, 3), Vectorized),
        (rectified, 1, (4, 3), ByHand),
        (rectified, 1, (4, 5, 3), OneByOne),
        (plain_convolutional, 2, (4, 1, 6, 6), ByHand),
        (convolutional, 2, (4, 36), OneByOne),
    ]
    for build, members, batch, way in ways:
        assert type(best_gradients(build(), mse, members, batch)) is way


def test_a_member_that_is_lost_leaves_the_others_as_they_are():
    models = starts(tanh_chain, 3)
    inputs, targets = examples(40, 3)
    whole, with_all = stacked(models, "cross_entropy", inputs, targets, 3, penalties=(0, 1, 2))
    with torch.no_grad():
        models[1][0].weight.fill_(torch.nan)
    _, with_lost = stacked(models, "cross_entropy", inputs, targets, 3, penalties=(0, 1, 2))
    lost, kept = whole.thetas(with_lost), whole.thetas(with_all)
    assert lost[1].isnan().all()
    assert torch.equal(lost[[0, 2]], kept[[0, 2]])


def test_training_in_two_pieces_is_training_in_one_to_the_bit():
    models = starts(tanh_chain, 2)
    data = examples(40, 3)
    training, state = stacked(models, "cross_entropy", *data, 4, penalties=(0, 1))
    _, half = stacked(models, "cross_entropy", *data, 2, penalties=(0, 1))
    other = Training(models[0], "cross_entropy", *data, penalties=(0, 1))
    adam = type(half.adam)(half.adam.theta, half.adam.mean, half.adam.square, half.adam.steps)
    resumed = type(half)(adam, half.epoch)
    for _ in range(2):
        other.epoch(resumed)
    assert torch.equal(other.thetas(resumed), training.thetas(state))
    assert (resumed.epoch, resumed.adam.steps) == (4, 8)


def test_evaluation_and_norms_are_the_plain_ones(monkeypatch):
    monkeypatch.setattr("isoloss.training.training.VALUES_AT_ONCE", 3000)  # in several parts
    models = starts(tanh_chain, 3)
    inputs, targets = examples(57, 3)
    training, state = stacked(models, "cross_entropy", inputs, targets, 1, penalties=(0, 1, 2))
    test_inputs, test_targets = examples(57, 3, seed=9)
    loss, hits = training.evaluate(state, test_inputs, test_targets, accuracy)
    norms = training.norms(state)
    for k, theta in enumerate(training.thetas(state)):
        torch.nn.utils.vector_to_parameters(theta, models[k].parameters())
        outputs = models[k](test_inputs)
        expected = functional.cross_entropy(outputs, test_targets)
        assert loss[k].item() == pytest.approx(expected.item(), rel=1e-12)
        assert hits[k].item() == (outputs.argmax(1) == test_targets).double().mean().item()
        assert norms.whole[k].item() == pytest.approx(theta.square().sum().item())
        weights = sum(p.square().sum() for p in models[k].parameters() if p.ndim > 1)
        assert norms.weights[k].item() == pytest.approx(weights.item())


@settings(max_examples=10)
@given(penalty=st.one_of(st.floats(max_value=-1e-300), st.sampled_from([math.inf, math.nan])))
def test_impossible_penalties_are_refused(penalty):
    with pytest.raises(InputError, match="finite number from 0"):
        Training(tanh_chain(), "mse", *examples(4, 3), penalties=(0.0, penalty))


def test_no_member_and_targets_that_do_not_fit_are_refused(refuses):
    with refuses("at least one"):
        Training(tanh_chain(), "cross_entropy", *examples(4, 3), penalties=())
    inputs, targets = examples(4, 3)
    training = Training(tanh_chain().double(), "mse", inputs, targets)
    with refuses("one shape"):
        training.init(theta_of(tanh_chain().double()).unsqueeze(0))
