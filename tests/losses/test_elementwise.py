"""Losses of outputs against their own targets, and cross-entropy's options, against torch."""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.problems import F64, generator, normal
from torch import Tensor
from torch.nn import functional

from isoloss.losses import (
    BCEWithLogits,
    CrossEntropy,
    Huber,
    accuracy,
    bce_with_logits,
    binary_accuracy,
    huber,
    mae,
    mse,
)

CLASSES = torch.randint(0, 5, (12,), generator=generator(1))
LOGITS = 4 * normal(12, 5, seed=2)
SOFT = functional.softmax(normal(12, 5, seed=3), 1)


def grad_of(loss: Any, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    z = outputs.clone().requires_grad_()
    losses = loss(z, targets)
    return losses.detach(), torch.autograd.grad(losses.sum(), z)[0]


def same(ours: Any, theirs: Any, outputs: Tensor, targets: Tensor, relative: float) -> None:
    for actual, wanted in zip(
        grad_of(ours, outputs, targets), grad_of(theirs, outputs, targets), strict=True
    ):
        torch.testing.assert_close(actual, wanted, rtol=relative, atol=relative, check_dtype=False)


# ---------------------------------------------------------------- cross-entropy's options


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("targets", [CLASSES, SOFT], ids=["indices", "probabilities"])
def test_cross_entropy_is_torchs(dtype: torch.dtype, smoothing: float, targets: Tensor) -> None:
    def theirs(z: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(z.double(), y, reduction="none", label_smoothing=smoothing)

    relative = 1e-6 if dtype == torch.float32 else 1e-13
    same(CrossEntropy(label_smoothing=smoothing), theirs, LOGITS.to(dtype), targets, relative)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_of_positions_is_their_mean(dtype: torch.dtype, soft: bool) -> None:
    logits = normal(4, 5, 3, 2, seed=4).to(dtype)
    targets = torch.randint(0, 5, (4, 3, 2), generator=generator(5))
    if soft:
        targets = functional.one_hot(targets, 5).movedim(-1, 1).to(F64)
    expected = functional.cross_entropy(logits.double(), targets, reduction="none").mean((1, 2))
    torch.testing.assert_close(CrossEntropy()(logits, targets), expected, rtol=1e-12, atol=0)


def test_probabilities_of_one_class_keep_the_digits_of_an_index() -> None:
    logits = torch.tensor([[3.0, 90.0, -2.0], [60.0, 0.0, 1.0]], dtype=F64)
    hard = torch.tensor([1, 0])
    soft = functional.one_hot(hard, 3).to(F64)
    losses, grad = grad_of(CrossEntropy(), logits, soft)
    wanted, wanted_grad = grad_of(CrossEntropy(), logits, hard)
    with decimal.localcontext(prec=60):
        exact = (1 + (Decimal(3) - 90).exp() + (Decimal(-2) - 90).exp()).ln()
    assert losses[0].item() == pytest.approx(float(exact), rel=1e-14, abs=0)
    torch.testing.assert_close(losses, wanted, rtol=1e-14, atol=0)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.full((3, 2), 0.8), ["sum to 1", "to 1.6"]),
        (SOFT - 0.5, ["from 0 to 1", "not -0."]),
        (torch.full((3, 2), 0.4), ["sum to 1", "0.8"]),
    ],
)
def test_probabilities_that_are_none_are_refused(
    refuses, targets: Tensor, words: list[str]
) -> None:
    with refuses("cross_entropy", *words):
        CrossEntropy().check_targets(targets)
    CrossEntropy().check_targets(SOFT)
    CrossEntropy().check_targets(CLASSES)


# ---------------------------------------------------------------- binary cross-entropy


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_binary_cross_entropy_is_torchs(dtype: torch.dtype) -> None:
    def theirs(z: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(z, y, reduction="none").mean(1)

    targets = SOFT.clone()
    targets[:4] = targets[:4].round()
    relative = 1e-6 if dtype == torch.float32 else 1e-13
    same(bce_with_logits, theirs, LOGITS.to(dtype), targets.to(dtype), relative)


@example(z=-25.0, y=1)
@example(z=25.0, y=0)
@example(z=38.0, y=0)
@given(z=st.floats(-80, 80), y=st.sampled_from([0, 1]))
def test_binary_cross_entropy_keeps_full_relative_accuracy(z: float, y: int) -> None:
    losses, grad = grad_of(bce_with_logits, torch.tensor([z], dtype=F64), torch.tensor([y]))
    with decimal.localcontext(prec=120):
        away = Decimal(z) if y == 0 else -Decimal(z)
        loss, slope = (1 + away.exp()).ln(), 1 / (1 + (-away).exp())
    assert losses.item() == pytest.approx(float(loss), rel=1e-13, abs=0)
    assert grad.item() == pytest.approx(float(slope) * (1 if y == 0 else -1), rel=1e-13, abs=0)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_binary_targets_may_be_of_any_type(kind: torch.dtype) -> None:
    targets = torch.tensor([[1, 0], [0, 0]])
    expected = bce_with_logits(LOGITS[:2, :2], targets)
    assert torch.equal(bce_with_logits(LOGITS[:2, :2], targets.to(kind)), expected)
    bce_with_logits.check_targets(targets.to(kind))


# ---------------------------------------------------------------- Huber and squares


@pytest.mark.parametrize("loss", [mse, huber, bce_with_logits, CrossEntropy()])
def test_misfits_are_refused(refuses, loss: Any) -> None:
    with refuses("one tensor", "dict", "of your own"):
        loss({"logits": LOGITS}, CLASSES)
    if loss != CrossEntropy():
        with refuses("(12, 5)", "(12,)", "reshape"):
            loss(LOGITS, CLASSES)  # which would broadcast


def test_binary_targets_outside_are_refused(refuses) -> None:
    with refuses("bce_with_logits", "0 to 1", "not 2"):
        BCEWithLogits().check_targets(torch.tensor([0, 1, 2]))


def test_squares_are_averaged_over_an_examples_outputs() -> None:
    outputs = torch.arange(12.0).reshape(2, 2, 3)
    assert mse(outputs, torch.zeros(2, 2, 3)).tolist() == pytest.approx([55 / 6, 451 / 6])
    assert mse(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)).tolist() == [1.0, 4.0]
    for loss in (mse, huber, mae):
        flat = loss(torch.tensor([1.0, 3.0]), torch.tensor([1, 2]))
        assert flat.shape == (2,)
        assert flat[0] == 0


@pytest.mark.parametrize("delta", [0.1, 1.0, 7.0])
def test_huber_is_torchs(delta: float) -> None:
    def theirs(z: Tensor, y: Tensor) -> Tensor:
        return functional.huber_loss(z, y, reduction="none", delta=delta).mean(1)

    same(Huber(delta=delta), theirs, LOGITS, normal(12, 5, seed=9), 1e-13)
    tiny = Huber(delta=delta)(torch.tensor([1e-12]), torch.zeros(1)).item()
    assert tiny == pytest.approx(0.5e-24, rel=1e-6, abs=0)


# ---------------------------------------------------------------- metrics


def test_metrics_of_small_cases() -> None:
    logits = torch.tensor([[2.0, -1.0], [-3.0, 4.0]])
    three = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0], [-1.0, -2.0, -0.5]])
    assert accuracy(three, torch.tensor([1, 1, 2])).tolist() == [1, 0, 1]
    assert accuracy(logits, torch.tensor([[0.9, 0.1], [0.8, 0.2]])).tolist() == [1, 0]
    assert accuracy(logits[..., None], torch.tensor([[0], [0]])).tolist() == [1, 0]
    assert binary_accuracy(logits, torch.tensor([[1, 0], [1, 1]])).tolist() == [1, 0.5]
    assert mae(logits, torch.zeros(2, 2)).tolist() == [1.5, 3.5]
