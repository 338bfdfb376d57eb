"""The losses keep their digits near zero, and refuse what they would silently misread."""

from __future__ import annotations

import decimal
import math
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isoloss.losses import (
    CrossEntropy,
    Huber,
    accuracy,
    binary_accuracy,
    cross_entropy,
    get_loss,
    get_metric,
    mae,
    mse,
)

F32, F64 = DTYPES = (torch.float32, torch.float64)


def oracle(logits: Tensor, target: int) -> tuple[float, list[float]]:
    """Cross-entropy and its gradient for one example, in 150 decimal digits."""
    with decimal.localcontext(prec=150):
        z = [Decimal(value) for value in logits.tolist()]
        odds = [(zj - z[target]).exp() for zj in z]
        others = sum(odds) - odds[target]
        grad = [odd / (1 + others) for odd in odds]
        grad[target] = -others / (1 + others)
        return float((1 + others).ln()), [float(g) for g in grad]


def value_and_grad(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    z = logits.clone().requires_grad_()
    losses = cross_entropy(z, targets)
    return losses.detach(), torch.autograd.grad(losses.sum(), z)[0]


@pytest.mark.parametrize(("dtype", "bound", "relative"), [(F64, 50, 1e-13), (F32, 30, 1e-6)])
@given(data=st.data())
def test_cross_entropy_keeps_its_digits_whatever_the_logits(
    dtype: torch.dtype, bound: int, relative: float, data: st.DataObject
) -> None:
    row = data.draw(st.lists(st.floats(-bound, bound, width=32), min_size=2, max_size=6))
    target = data.draw(st.integers(0, len(row) - 1))
    logits = torch.tensor([row], dtype=dtype)
    loss, grad = value_and_grad(logits, torch.tensor([target]))
    expected, expected_grad = oracle(logits[0], target)
    least = 1e-300 if dtype == F64 else 1e-14
    assert loss.item() == pytest.approx(expected, rel=relative, abs=least)
    assert grad[0].tolist() == pytest.approx(expected_grad, rel=relative, abs=least)


@pytest.mark.parametrize("margin", [-1e4, -45.0, -21.0, 15.0, 30.5, 69.0, 230.0])
def test_float64_losses_of_any_size_keep_their_digits(margin: float) -> None:
    logits = torch.tensor([[3.0, 3.0 + margin]], dtype=F64)
    loss, grad = value_and_grad(logits, torch.tensor([1]))
    expected, expected_grad = oracle(logits[0], 1)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=0)
    assert grad[0].tolist() == pytest.approx(expected_grad, rel=1e-12, abs=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("wanted", [1e-2, 1e-4, 2e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_small_losses_have_six_digits(
    wanted: float, classes: int, dtype: torch.dtype, offset: float
) -> None:
    logits = torch.full((1, classes), offset, dtype=dtype)
    logits[0, 1] += math.log((classes - 1) / math.expm1(wanted))
    loss, grad = value_and_grad(logits, torch.tensor([1]))
    expected_loss, expected_grad = oracle(logits[0], 1)
    assert expected_loss == pytest.approx(wanted, rel=1e-4, abs=0)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-6, abs=0)
    assert grad[0].tolist() == pytest.approx(expected_grad, rel=1e-6, abs=0)


@pytest.mark.parametrize(
    ("logits", "targets", "words"),
    [
        (torch.zeros(4, 3), torch.zeros(4), ["int64", "torch.float32", "targets.long()"]),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int32), ["int64", "torch.int32"]),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int64), ["(n,)", "(4, 3)"]),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64), ["(n, classes)", "(4,)"]),
        (torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.int64), ["(n, classes)", "(4, 3, 2)"]),
    ],
)
def test_cross_entropy_refuses_misfits(
    refuses, logits: Tensor, targets: Tensor, words: list[str]
) -> None:
    with refuses("cross_entropy", *words):
        cross_entropy(logits, targets)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", [-100, -1, 3])
def test_a_target_that_is_no_class_is_refused(refuses, target: int, dtype: torch.dtype) -> None:
    with refuses(f"target {target} "):
        cross_entropy(torch.zeros(2, 3, dtype=dtype), torch.tensor([0, target]))


def test_a_metric_goes_with_each_loss_and_functions_are_taken_as_they_are() -> None:
    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - targets

    assert get_loss("mse") is mse
    assert get_loss(own) is own
    for metric, loss, expected in (
        (None, "cross_entropy", accuracy),
        (None, CrossEntropy(label_smoothing=0.1), accuracy),
        (None, "mse", mse),
        (None, "bce_with_logits", binary_accuracy),
        (None, Huber(delta=3), mae),
        ("mse", "huber", mse),
        ("accuracy", "mse", accuracy),
        (own, "mse", own),
        (None, own, None),
    ):
        assert get_metric(metric, loss) == expected


def test_what_is_no_loss_or_metric_is_refused(refuses) -> None:
    for get, words in (
        (lambda: get_loss("crossentropy"), ["loss", "'crossentropy'", "did you mean cross_ent"]),
        (lambda: get_loss("hinge"), ["loss", "'hinge'", "cross_entropy, huber, mse"]),
        (lambda: get_loss(Huber), ["Huber", "Huber()"]),
        (lambda: get_metric("acuracy", "mse"), ["metric", "'acuracy'", "did you mean accuracy"]),
        *((lambda d=d: Huber(delta=d), ["delta", "Huber"]) for d in (0, -1.0, math.inf)),
        *(
            (lambda s=s: CrossEntropy(label_smoothing=s), ["label_smoothing", "CrossEntropy"])
            for s in (-0.1, 1.0, math.nan)
        ),
    ):
        with refuses(*words):
            get()
