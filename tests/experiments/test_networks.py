"""The networks of the paper: sizes and starts, from the formulas in its description."""

import math

import pytest
import torch

from isoloss import experiments

PARAMETERS = {
    "IRIS_FF": 31_103,
    "MPG_FF": 31_401,
    "MNIST_FF": 99_710,
    "MNIST_CONV": 54_930,
    "CIFAR10_CONV": 685_450,
}
SHAPES = {
    "IRIS_FF": ((2, 4), (2, 3)),
    "MPG_FF": ((2, 9), (2, 1)),
    "MNIST_FF": ((2, 784), (2, 10)),
    "MNIST_CONV": ((2, 1, 28, 28), (2, 10)),
    "CIFAR10_CONV": ((2, 3, 32, 32), (2, 10)),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_shapes_are_the_papers(name):
    network = experiments.get(name).network(seed=0)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]
    inputs, outputs = SHAPES[name]
    assert network(torch.zeros(inputs)).shape == outputs


@pytest.mark.parametrize("name", ["MNIST_FF", "MNIST_CONV", "CIFAR10_CONV"])
def test_weights_are_glorot_normal_truncated_at_two(name):
    for parameter in experiments.get(name).network(seed=3).requires_grad_(False).parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.zeros_like(parameter))
            continue
        receptive = math.prod(parameter.shape[2:])
        wanted = math.sqrt(2 / (receptive * (parameter.shape[0] + parameter.shape[1])))
        assert parameter.abs().max() <= 2 * wanted / 0.8796
        spread = 4 / math.sqrt(parameter.numel())
        assert parameter.std().item() == pytest.approx(wanted, rel=spread)
        assert parameter.mean().abs() < spread * wanted


def test_the_seed_alone_determines_the_start():
    experiment = experiments.get("IRIS_FF")
    torch.manual_seed(1)
    first = experiment.network(5).state_dict()
    torch.manual_seed(2)
    again, other = experiment.network(5).state_dict(), experiment.network(6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
