"""Adam, and stacks of networks against each of them trained alone by plain torch."""

import copy
import math
import re

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tests.graphs import CpuGraph
from tests.plain_models import OTHERS, PLAIN, REORDERED
from torch import nn
from torch.nn import functional

from isoloss import InputError
from isoloss._kernels import images
from isoloss.flat import flatten, trainable
from isoloss.losses import CrossEntropy, accuracy
from isoloss.training import Adam, Training, train

PENALTIES = (0.0, 1e-3, 1.0, 1e6)


@pytest.fixture(params=["by kernels", "captured"])
def graphs(request, monkeypatch):
    """Steps as on a CPU, and as on a GPU: the graphs that were recorded."""
    made = []

    def graph_for(device):
        made.append(CpuGraph())
        return made[-1]

    if request.param == "captured":
        monkeypatch.setattr("isoloss.training.graph_for", graph_for)
        monkeypatch.setattr(images, "_by_tiles", lambda place: images.tile(place.part.module))
    return made


def tanh_chain():
    return nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4))


def convolutional():
    layers = [nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(nn.Unflatten(1, (1, 6, 6)), *layers)


MODELS = {
    **PLAIN,
    **REORDERED,
    **{name: (make, (4,)) for name, make in OTHERS.items()},
    "images in a row": (convolutional, (36,)),
}


def examples(count, features=(3,), seed=1, members=None, classes=3):
    generator = torch.Generator().manual_seed(seed)
    shape = (count,) if members is None else (members, count)
    inputs = torch.randn(*shape, *features, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(classes, shape, generator=generator)


def starts(build, members):
    """Networks of one architecture with parameters of their own."""
    torch.manual_seed(0)
    models = [build().double() for _ in range(members)]
    for model in models:
        for p in trainable(model, None).values():
            p.data = torch.randn(p.shape, dtype=torch.float64) / 2
    return models


def theta_of(model):
    return flatten(list(trainable(model, None).values()))


def by_plain_torch(model, loss, inputs, targets, penalty, epochs, include_biases=False):
    """The reference: one network, the penalty written into the loss, Adam's formula by hand."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    m, v, t = [0.0] * len(parameters), [0.0] * len(parameters), 0
    for _ in range(epochs):
        for first in range(0, len(targets), 32):
            rows = slice(first, first + 32)
            total = loss(model(inputs[rows]), targets[rows]).mean()
            for p in parameters:
                if p.ndim > 1 or include_biases:
                    total = total + penalty * p.square().sum()
            gradients = torch.autograd.grad(
                total, parameters, allow_unused=True, materialize_grads=True
            )
            t += 1
            rate = 1e-3 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            for k, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g**2
                p.data -= rate * m[k] / (v[k].sqrt() + 1e-7)
    return theta_of(model)


def cross_entropy(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="none")


def smoothed(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def squared(outputs, targets):
    return (outputs - targets).square().flatten(1).mean(1)


def stacked(models, loss, inputs, targets, epochs, **options):
    training = Training(models[0], loss, inputs, targets, **options)
    state = training.init(torch.stack([theta_of(model) for model in models]))
    for _ in range(epochs):
        training.epoch(state)
    return training, state


def test_adam_makes_keras_steps():
    """The update as Keras documents it: epsilon inside, both corrections in the rate."""
    gradients = np.random.default_rng(0).normal(size=(50, 6)) * np.array([1, 1e-6, 1e3, 1e-7, 0, 1])
    adam = Adam.at(torch.zeros(6, dtype=torch.float64))
    theta, m, v = np.zeros(6), 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        adam.step(torch.from_numpy(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - 1e-3 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
    np.testing.assert_allclose(adam.theta, theta, rtol=1e-12)


def test_training_changes_the_model_always_alike_and_no_global_generator():
    inputs, targets = examples(40)
    (model,) = starts(tanh_chain, 1)
    model[0].weight.requires_grad_(False)
    copies, state = [copy.deepcopy(model) for _ in range(3)], torch.get_rng_state()
    for one in copies[:2]:
        train(one, "cross_entropy", inputs, targets, epochs=2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(theta_of(copies[0]), theta_of(copies[1]))
    alone = by_plain_torch(copies[2], cross_entropy, inputs, targets, 0, 2)
    torch.testing.assert_close(theta_of(copies[0]), alone, rtol=0, atol=1e-10)
    assert torch.equal(copies[0][0].weight, model[0].weight)


@pytest.fixture
def poisoned():
    """Memory that torch hands out uninitialized holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of weight norm
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("members", [1, 4])
def test_members_are_the_networks_trained_alone(kind, members, poisoned, graphs):
    if members > 1 and kind.startswith("a backward hook"):
        pytest.skip("torch has no vmap through its hooks, and says so")
    build, features = MODELS[kind]
    models = starts(build, members)
    inputs, targets = examples(70, features)
    targets = torch.randn_like(models[0](inputs)).detach()
    penalties = PENALTIES[-members:]
    ways = {"include_biases": members > 1, "penalties": penalties}
    training, state = stacked(models, "mse", inputs, targets, 2, **ways)
    for ours, model, penalty in zip(training.thetas(state), models, penalties, strict=True):
        alone = by_plain_torch(model, squared, inputs, targets, penalty, 2, members > 1)
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["dense", "images", "rectified", "flattened", "no bias"])
@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize("single", [False, True])
def test_classes_and_single_precision(kind, members, single, graphs):
    build, features = MODELS[kind]
    models = [model.float() if single else model for model in starts(build, members)]
    inputs, targets = examples(70, features)
    inputs = inputs.float() if single else inputs
    for loss, plainly in (("cross_entropy", cross_entropy),
                          (CrossEntropy(label_smoothing=0.1), smoothed)):  # fmt: skip
        penalties = PENALTIES[:members]
        training, state = stacked(models, loss, inputs, targets, 2, penalties=penalties)
        for ours, model, penalty in zip(training.thetas(state), models, penalties, strict=True):
            alone = by_plain_torch(model, plainly, inputs, targets, penalty, 2)
            # steps of 1e-3, whose direction a gradient near zero may take from its rounding
            torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5 if single else 1e-10)


@pytest.mark.parametrize("kind", ["dense", "images", "no bias", "another activation"])
def test_members_may_have_examples_of_their_own(kind, graphs):
    build, features = MODELS[kind]
    models = starts(build, 3)
    inputs, targets = examples(40, features, members=3)
    training, state = stacked(
        models, "cross_entropy", inputs, targets, 2, penalties=(0, 1, 2), own_examples=True
    )
    for k, (ours, model) in enumerate(zip(training.thetas(state), models, strict=True)):
        alone = by_plain_torch(model, cross_entropy, inputs[k], targets[k], k, 2)
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["dense", "images"])
def test_members_that_follow_one_another_share_the_examples_of_their_group(kind, graphs):
    build, features = MODELS[kind]
    models = starts(build, 4)
    inputs, targets = examples(40, features, members=2)
    training, state = stacked(
        models, "cross_entropy", inputs, targets, 2, penalties=PENALTIES, own_examples=True
    )
    found = training.evaluate(state, inputs, targets, accuracy, own_examples=True)
    for k, (ours, model) in enumerate(zip(training.thetas(state), models, strict=True)):
        own = inputs[k // 2], targets[k // 2]
        alone = by_plain_torch(model, cross_entropy, *own, PENALTIES[k], 2)
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-10)
        losses = cross_entropy(model(own[0]), own[1])
        assert found[0][k].item() == pytest.approx(losses.mean().item(), rel=1e-8)
    assert [graph.replays for graph in graphs if graph.replays] == ([2, 2] if graphs else [])


class Waits(nn.Module):
    """Reads a number that the device computes."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(3, 4)

    def forward(self, x):
        return self.dense(x) * math.exp(x.sum().item() / 100)


def normed():
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 4)]
    return nn.Sequential(nn.Unflatten(1, (1, 6, 6)), *layers)


@pytest.mark.parametrize("graphs", ["captured"], indirect=True)
@pytest.mark.parametrize(
    ("build", "features", "members", "words"),
    [
        (Waits, (3,), 1, "steps are not captured in a CUDA graph: .* waits for the device"),
        (normed, (36,), 2, "networks are trained one after another, not at once: During a grad"),
    ],
)
def test_what_cannot_be_captured_is_trained_all_the_same(build, features, members, words, graphs):
    models = starts(build, members)
    inputs, targets = examples(40, features)
    penalties = PENALTIES[:members]
    training, state = stacked(models, "cross_entropy", inputs, targets, 2, penalties=penalties)
    assert re.fullmatch(f"{words}.*", " ".join(training.notes))
    for ours, model, penalty in zip(training.thetas(state), models, penalties, strict=True):
        alone = by_plain_torch(model, cross_entropy, inputs, targets, penalty, 2)
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-10)


def test_a_state_in_parts_is_one_to_the_bit():
    models = starts(tanh_chain, 4)
    inputs, targets = examples(40, members=2)
    options = {"penalties": PENALTIES, "own_examples": True}
    training, state = stacked(models, "cross_entropy", inputs, targets, 2, **options)
    parts = training.split(state, 2)
    for k, part in enumerate(parts):
        own = (data[k] for data in (inputs, targets))
        alone = Training(models[0], "cross_entropy", *own, penalties=PENALTIES[2 * k : 2 * k + 2])
        assert torch.equal(alone.thetas(part), training.thetas(state)[2 * k : 2 * k + 2])
        assert (part.epoch, part.adam.steps) == (2, 4)
    again = training.join(parts)
    for _ in range(2):
        training.epoch(state)
    for _ in range(2):
        training.epoch(again)
    assert torch.equal(training.thetas(again), training.thetas(state))


def in_place(outputs, targets):
    return outputs.sub_(targets).square_().mean(1)


@pytest.mark.parametrize("members", [1, 2])
def test_a_loss_of_the_users_own(members, graphs):
    models = starts(tanh_chain, members)
    inputs, targets = examples(50)[0], examples(50, (4,), seed=2)[0]
    training, state = stacked(models, in_place, inputs, targets, 3, penalties=(0.1,) * members)
    for ours, model in zip(training.thetas(state), models, strict=True):
        alone = by_plain_torch(model, squared, inputs, targets, 0.1, 3)
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-10)


def test_classes_along_another_axis_are_not_taken_for_the_last():
    model = nn.Sequential(nn.Conv2d(1, 3, 2)).double()
    inputs = torch.randn(8, 1, 4, 4, dtype=torch.float64)
    targets = torch.randint(3, (8, 3, 3))
    training, state = stacked([model], "cross_entropy", inputs, targets, 2)
    alone = by_plain_torch(model, cross_entropy, inputs, targets, 0, 2)
    torch.testing.assert_close(training.thetas(state)[0], alone, rtol=0, atol=1e-10)


def test_a_member_that_is_lost_leaves_the_others_as_they_are(graphs):
    models = starts(tanh_chain, 3)
    inputs, targets = examples(40)
    whole, with_all = stacked(models, "cross_entropy", inputs, targets, 3, penalties=(0, 1, 2))
    with torch.no_grad():
        models[1][0].weight.fill_(torch.nan)
    _, with_lost = stacked(models, "cross_entropy", inputs, targets, 3, penalties=(0, 1, 2))
    lost, kept = whole.thetas(with_lost), whole.thetas(with_all)
    assert lost[1].isnan().all()
    assert torch.equal(lost[[0, 2]], kept[[0, 2]])


def test_training_in_two_pieces_is_training_in_one_to_the_bit(graphs):
    models = starts(tanh_chain, 2)
    data = examples(40)
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
    monkeypatch.setattr("isoloss.training.VALUES_AT_ONCE", 3000)  # in several parts
    models = starts(tanh_chain, 3)
    inputs, targets = examples(57)
    training, state = stacked(models, "cross_entropy", inputs, targets, 1, penalties=(0, 1, 2))
    test_inputs, test_targets = examples(57, seed=9)
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
    with pytest.raises(InputError, match="finite numbers from 0"):
        Training(tanh_chain(), "mse", *examples(4), penalties=(0.0, penalty))


def test_what_cannot_be_trained_is_refused(refuses):
    inputs, targets = examples(4)
    with refuses("at least one"):
        Training(tanh_chain(), "cross_entropy", inputs, targets, penalties=())
    model = tanh_chain().double()
    for counts in ({"epochs": 0}, {"epochs": -1}, {"epochs": 1, "batch_size": 0}):
        with refuses("at least 1"):
            train(model, "mse", inputs, targets, **counts)
    with refuses("2 groups", "3 members"):
        Training(model, "mse", *examples(4, members=2), penalties=(0, 1, 2), own_examples=True)
    with refuses("one shape"):
        train(model, "mse", inputs, targets, epochs=1)
    with refuses("one value per example", "()"):
        train(model, functional.cross_entropy, inputs, targets, epochs=1)
    for loss in (nn.CrossEntropyLoss(), lambda model, batch: model(batch).sum(1)):
        with refuses("training takes", "reduction='none'"):
            train(model, loss, inputs, targets, epochs=1)
    with refuses("target 7 is no class"):
        train(model, "cross_entropy", inputs, torch.tensor([0, 1, 2, 7]), epochs=1)
    with refuses("inputs of torch.float32", "same dtype"):
        train(model, "cross_entropy", inputs.float(), targets, epochs=1)
