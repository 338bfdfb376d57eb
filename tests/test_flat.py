"""One flat vector in the order of named_parameters, and a model that is left alone."""

from __future__ import annotations

import pytest
import torch
from tests.problems import classifier, normal, snapshot
from torch import Tensor, nn
from torch.func import functional_call

from isoloss.flat import BLOCK, FlatNetwork, flatten, inner, load_into, trainable


class Tied(nn.Module):
    """The same matrix in both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(inputs)))


class Unused(nn.Module):
    """A parameter that the outputs do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(2))
        self.used = nn.Parameter(torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.used


def test_shapes_follow_named_parameters() -> None:
    model = classifier().model
    network = FlatNetwork(model)
    expected = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    assert list(network.layout.shapes.items()) == expected
    assert network.size == sum(p.numel() for p in model.parameters())


def test_outputs_are_the_models_own() -> None:
    net = classifier()
    assert torch.equal(FlatNetwork(net.model)(net.data[0]), net.model(net.data[0]))


def test_a_loaded_point_gives_the_outputs_of_its_parameters() -> None:
    net = classifier()
    network = FlatNetwork(net.model)
    theta = normal(network.size, seed=5)
    named = dict(zip(network.layout.shapes, network.layout.split(theta), strict=True))
    network.load(theta)
    assert torch.equal(network(net.data[0]), functional_call(net.model, named, net.data[0]))


def test_loading_a_point_copies_it() -> None:
    net = classifier()
    network = FlatNetwork(net.model)
    theta = net.theta
    network.load(theta)
    before = network(net.data[0])
    theta.zero_()
    assert torch.equal(network(net.data[0]), before)


def test_split_undoes_flatten() -> None:
    network = FlatNetwork(classifier().model)
    theta = normal(network.size, seed=3)
    pieces = network.layout.split(theta)
    assert [tuple(piece.shape) for piece in pieces] == list(network.layout.shapes.values())
    assert torch.equal(flatten(pieces), theta)


def test_split_gives_views() -> None:
    network = FlatNetwork(classifier().model)
    theta = torch.ones(network.size, dtype=torch.float64)
    network.layout.split(theta)[0].zero_()
    assert theta.sum() == network.size - theta.eq(0).sum()
    assert theta[0] == 0


def test_flatten_gives_a_new_tensor_without_gradient() -> None:
    source = torch.ones(3, requires_grad=True)
    flat = flatten([source])
    flat.zero_()
    assert not flat.requires_grad
    assert source.tolist() == [1.0, 1.0, 1.0]


def test_frozen_parameters_are_left_out() -> None:
    model = classifier().model
    model[0].weight.requires_grad_(False)
    network = FlatNetwork(model)
    assert list(network.layout.shapes) == ["0.bias", "2.weight", "2.bias"]
    assert network.size == 5 + 20 + 4


def test_frozen_parameters_still_act() -> None:
    net = classifier()
    net.model[0].weight.requires_grad_(False)
    network = FlatNetwork(net.model)
    ones, zeros = torch.ones(20), torch.zeros(5)
    network.load(torch.cat([zeros, ones, zeros[:4]]))
    hidden = torch.tanh(net.data[0] @ net.model[0].weight.T)
    torch.testing.assert_close(network(net.data[0]), hidden.sum(1, keepdim=True).expand(-1, 4))


def test_a_tied_parameter_is_counted_once_and_gathers_both_gradients() -> None:
    model, inputs = Tied().double(), normal(5, 3, seed=1)
    network = FlatNetwork(model)
    assert list(network.layout.shapes) == ["first.weight", "first.bias", "second.bias"]
    expected = torch.autograd.grad(model(inputs).square().sum(), list(model.parameters()))
    one = torch.ones((), dtype=torch.float64)
    grads = network.gradients(network(inputs).square().sum(), one)
    torch.testing.assert_close(flatten(grads), flatten(expected))


def test_tied_parameters_stay_tied_in_another_type() -> None:
    network = FlatNetwork(Tied(), dtype=torch.float64)
    network.load(torch.zeros(network.size))
    assert network(normal(5, 3, seed=1)).tolist() == [[0.0] * 3] * 5


def test_parameters_without_influence_have_zero_gradient() -> None:
    network = FlatNetwork(Unused())
    total = network(torch.tensor([[1.0, 2.0, 3.0]])).sum()
    idle, used = network.gradients(total, torch.tensor(2.0))
    assert idle.tolist() == [0.0, 0.0]
    assert used.tolist() == [2.0, 4.0, 6.0]


def test_a_function_uses_its_dict_of_parameters() -> None:
    start = {"w": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "b": torch.tensor([1.0, -1.0])}
    network = FlatNetwork(lambda p, x: x @ p["w"] + p["b"], start)
    assert network.layout.shapes == {"w": (2, 2), "b": (2,)}
    assert network(torch.tensor([[1.0, 1.0]])).tolist() == [[3.0, 0.0]]
    network.load(torch.arange(6.0))
    assert network(torch.tensor([[1.0, 1.0]])).tolist() == [[2.0 + 4.0, 4.0 + 5.0]]


def test_a_functions_parameters_are_left_alone() -> None:
    start = {"w": torch.ones(2)}
    network = FlatNetwork(lambda p, x: x * p["w"], start)
    network.load(torch.zeros(2))
    assert start["w"].tolist() == [1.0, 1.0]
    assert not start["w"].requires_grad


def test_a_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    model(torch.ones(2, 3)).sum().backward()
    before = snapshot(model)
    network = FlatNetwork(model, dtype=torch.float64)
    network.load(torch.zeros(network.size))
    network(torch.ones(2, 3, dtype=torch.float64))
    assert snapshot(model) == before


def test_load_into_writes_a_flat_vector_into_the_models_parameters() -> None:
    model = classifier().model
    theta = normal(44, seed=9)
    load_into(model, theta, FlatNetwork(model).layout.shapes)
    assert torch.equal(flatten(list(model.parameters())), theta)
    assert all(p.requires_grad for p in model.parameters())


def test_load_into_leaves_frozen_parameters() -> None:
    model = classifier().model
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    load_into(model, torch.zeros(29), FlatNetwork(model).layout.shapes)
    assert torch.equal(model[0].weight, frozen)
    assert not model[2].weight.any()


def test_load_into_refuses_another_architecture_and_changes_nothing(refuses) -> None:
    model, other = classifier().model, classifier(sizes=(3, 6, 4)).model
    before = snapshot(other)
    with refuses("architecture"):
        load_into(other, torch.zeros(44), FlatNetwork(model).layout.shapes)
    assert snapshot(other) == before


def test_several_types_are_refused_by_name(refuses) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with refuses("one type", "torch.float32, torch.float64", "model.to("):
        trainable(model, None)


def test_several_devices_are_refused_by_name(refuses) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with refuses("one device", "cpu, meta"):
        trainable(model, None)


def test_nothing_to_train_is_refused(refuses) -> None:
    with refuses("no trainable parameters", "requires_grad=True"):
        trainable(nn.Linear(2, 2).requires_grad_(False), None)


def test_a_function_without_parameters_is_refused(refuses) -> None:
    with refuses("parameters=", "function"):
        FlatNetwork(lambda p, x: x)
    with refuses("no trainable parameters"):
        FlatNetwork(lambda p, x: x, {})


def test_a_module_with_parameters_is_refused(refuses) -> None:
    with refuses("parameters=", "module"):
        FlatNetwork(nn.Linear(2, 2), {"w": torch.ones(2)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_flat_type_is_the_one_asked_for(dtype: torch.dtype) -> None:
    network = FlatNetwork(nn.Linear(2, 2), dtype=dtype)
    assert network.dtype == dtype
    assert network(torch.ones(1, 2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("size", [1, 1000, BLOCK, BLOCK + 1, 40 * BLOCK + 7])
def test_inner_products_in_float32_keep_six_digits_at_any_length(size: int) -> None:
    a = normal(size, seed=size).float()
    exact = a.double().dot(a.double()).item()
    assert inner(a, a).item() == pytest.approx(exact, rel=2e-6)
    if size <= BLOCK:
        assert inner(a, a) == a.dot(a)
