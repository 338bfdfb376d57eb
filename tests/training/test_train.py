"""Phase 1 against an independent NumPy Adam and against torch.optim."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from isoloss import InputError
from isoloss.training import Adam, train


def small_network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def small_data(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(count, 3, generator=generator, dtype=dtype)
    return inputs, (inputs[:, 0] > 0).long()


def keras_adam(gradients, start):
    """The update as Keras documents it: epsilon inside, both corrections in the rate."""
    theta, m, v = np.array(start), 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - 1e-3 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
    return theta


def test_adam_makes_keras_steps():
    gradients = np.random.default_rng(0).normal(size=(50, 6)) * np.array([1, 1e-6, 1e3, 1e-7, 0, 1])
    theta = torch.zeros(6, dtype=torch.float64)
    adam = Adam.at(theta)
    for gradient in gradients:
        adam.step(torch.from_numpy(gradient))
    np.testing.assert_allclose(theta, keras_adam(gradients, np.zeros(6)), rtol=1e-12)


def test_training_is_torch_adam_over_batches_in_order():
    inputs, targets = small_data(70)
    model, other = small_network(), small_network()
    train(model, "cross_entropy", inputs, targets, epochs=3)
    # where gradients are far above epsilon, its place in the formula does not matter
    adam = torch.optim.Adam(other.parameters(), lr=1e-3, eps=1e-12)
    for _ in range(3):
        for batch in range(0, 70, 32):
            adam.zero_grad()
            rows = slice(batch, batch + 32)
            functional.cross_entropy(other(inputs[rows]), targets[rows]).backward()
            adam.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_training_is_repeatable_to_the_bit_and_touches_no_global_generator():
    inputs, targets = small_data(40, torch.float32)
    state = torch.get_rng_state()
    ends = []
    for _ in range(2):
        torch.set_rng_state(state)
        model = small_network(dtype=torch.float32)
        before = torch.get_rng_state()
        train(model, "cross_entropy", inputs, targets, epochs=2)
        assert torch.equal(before, torch.get_rng_state())
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


def test_frozen_parameters_stay():
    inputs, targets = small_data(40)
    model = small_network()
    model[0].weight.requires_grad_(False)
    frozen, free = model[0].weight.clone(), model[2].weight.clone()
    train(model, "cross_entropy", inputs, targets, epochs=1)
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[2].weight, free)


@pytest.mark.parametrize("counts", [{"epochs": 0}, {"epochs": -1}, {"epochs": 1, "batch_size": 0}])
def test_counts_must_be_positive(counts):
    with pytest.raises(InputError, match="at least 1"):
        train(small_network(), "cross_entropy", *small_data(4), **counts)
