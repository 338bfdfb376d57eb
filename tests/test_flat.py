"""One flat vector in the order of named_parameters, and a model that is left alone."""

from __future__ import annotations

import pytest
import torch
from tests.problems import F64, classifier, normal, snapshot
from torch import Tensor, nn
from torch.func import functional_call

from isoloss.flat import BLOCK, FlatNetwork, flatten, inner, packed, trainable
from isoloss.names import load_into


class Tied(nn.Module):
    """The same matrix in both layers, and a parameter that the outputs do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(inputs)))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_loaded_point_is_copied_and_gives_the_outputs_of_its_parameters(frozen: bool) -> None:
    net = classifier()
    net.model[0].weight.requires_grad_(not frozen)
    network = FlatNetwork(net.model)
    own = {name: p for name, p in net.model.named_parameters() if p.requires_grad}
    assert network.layout.shapes == {name: tuple(p.shape) for name, p in own.items()}
    assert network.size == sum(p.numel() for p in own.values()) == (29 if frozen else 44)
    assert torch.equal(network(net.data[0]), net.model(net.data[0]))
    theta = normal(network.size, seed=5)
    named = {name: p.clone() for name, p in network.layout.named(theta).items()}
    network.load(theta)
    theta.zero_()
    assert torch.equal(network(net.data[0]), functional_call(net.model, named, net.data[0]))


def test_flatten_is_a_new_tensor_without_gradient_and_split_undoes_it_by_views() -> None:
    layout = FlatNetwork(classifier().model).layout
    theta = normal(layout.size, seed=3)
    pieces = layout.split(theta)
    assert [tuple(piece.shape) for piece in pieces] == list(layout.shapes.values())
    flat = flatten([piece.requires_grad_() for piece in pieces])
    assert torch.equal(flat, theta)
    assert not flat.requires_grad
    flat.zero_()
    assert theta.all()
    layout.split(theta)[0].zero_()
    assert not theta[:15].any()


def test_a_tied_parameter_is_there_once_with_both_gradients_and_an_idle_one_has_none() -> None:
    model, inputs = Tied(), normal(5, 3, seed=1)
    network = FlatNetwork(model, dtype=torch.float64)
    assert list(network.layout.shapes) == ["idle", "first.weight", "first.bias", "second.bias"]
    grads = network.gradients(network(inputs).square().sum(), torch.tensor(2.0).double())
    total, leaves = model.double()(inputs).square().sum(), list(model.parameters())[1:]
    expected = torch.autograd.grad(2 * total, leaves)
    assert grads[0].tolist() == [0, 0]
    torch.testing.assert_close(flatten(grads[1:]), flatten(expected))
    network.load(torch.zeros(network.size))
    assert network(inputs).tolist() == [[0.0] * 3] * 5  # tied in another type too


def test_a_function_uses_its_dict_of_parameters_which_is_left_alone() -> None:
    start = {"w": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "b": torch.tensor([1.0, -1.0])}
    network = FlatNetwork(lambda p, x: x @ p["w"] + p["b"], start)
    assert network.layout.shapes == {"w": (2, 2), "b": (2,)}
    assert network(torch.tensor([[1.0, 1.0]])).tolist() == [[3.0, 0.0]]
    network.load(torch.arange(6.0))
    assert network(torch.tensor([[1.0, 1.0]])).tolist() == [[2.0 + 4.0, 4.0 + 5.0]]
    assert start["b"].tolist() == [1.0, -1.0]
    assert not start["b"].requires_grad


def test_a_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    model(torch.ones(2, 3)).sum().backward()
    before = snapshot(model)
    network = FlatNetwork(model, dtype=torch.float64)
    network.load(torch.zeros(network.size))
    network(torch.ones(2, 3, dtype=torch.float64))
    assert snapshot(model) == before


def test_load_into_writes_the_trainable_parameters_of_the_same_architecture_alone(refuses) -> None:
    model = classifier().model
    whole, theta = FlatNetwork(model).layout.shapes, normal(44, seed=9)
    load_into(model, theta, whole)
    assert torch.equal(flatten(list(model.parameters())), theta)
    model[0].weight.requires_grad_(False)
    load_into(model, torch.zeros(29), FlatNetwork(model).layout.shapes)
    assert model[0].weight.all()
    assert not model[2].weight.any()
    for other in (model, classifier(sizes=(3, 6, 4)).model):
        before = snapshot(other)
        with refuses("architecture"):
            load_into(other, torch.zeros(44), whole)
        assert snapshot(other) == before


def test_what_holds_nothing_to_train_is_refused(refuses) -> None:
    with refuses("no trainable parameters", "requires_grad=True"):
        trainable(nn.Linear(2, 2).requires_grad_(False), None)
    with refuses("no trainable parameters"):
        FlatNetwork(lambda p, x: x, {})


@pytest.mark.parametrize("size", [1, 1000, BLOCK, BLOCK + 1, 40 * BLOCK + 7])
def test_inner_products_in_float32_keep_six_digits_at_any_length(size: int) -> None:
    a = normal(size, seed=size).float()
    exact = a.double().dot(a.double()).item()
    assert inner(a, a).item() == pytest.approx(exact, rel=2e-6)
    if size <= BLOCK:
        assert inner(a, a) == a.dot(a)


def test_numbers_and_vectors_of_several_types_are_packed_in_their_order() -> None:
    third = torch.tensor(1 / 3)
    given = [third, torch.ones(2, dtype=F64), torch.tensor(1 / 3, dtype=F64), third + torch.eye(2)]
    given.append(torch.tensor([2**24 + 1]))
    for several in (given, given[::-1], given[1:3], given[:1]):
        expected = [number for one in several for number in one.double().flatten().tolist()]
        assert packed(several).tolist() == expected
        assert packed(several).dtype == F64
