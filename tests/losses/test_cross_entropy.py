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

from isoloss.losses import METRICS, accuracy, cross_entropy, get_loss, get_metric, mse

DTYPES = (torch.float32, torch.float64)


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


@st.composite
def rows_of_logits(draw: st.DrawFn, bound: float) -> tuple[list[float], int]:
    row = draw(st.lists(st.floats(-bound, bound, width=32), min_size=2, max_size=6))
    return row, draw(st.integers(0, len(row) - 1))


@given(rows_of_logits(bound=50))
def test_float64_cross_entropy_keeps_full_relative_accuracy(case: tuple[list[float], int]) -> None:
    row, target = case
    logits = torch.tensor([row], dtype=torch.float64)
    loss, grad = value_and_grad(logits, torch.tensor([target]))
    expected_loss, expected_grad = oracle(logits[0], target)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-13, abs=1e-300)
    assert grad[0].tolist() == pytest.approx(expected_grad, rel=1e-13, abs=1e-300)


@given(rows_of_logits(bound=30))
def test_float32_cross_entropy_keeps_six_digits_down_to_1e_8(case: tuple[list[float], int]) -> None:
    row, target = case
    logits = torch.tensor([row], dtype=torch.float32)
    loss, grad = value_and_grad(logits, torch.tensor([target]))
    expected_loss, expected_grad = oracle(logits[0], target)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-6, abs=1e-14)
    assert grad[0].tolist() == pytest.approx(expected_grad, rel=1e-6, abs=1e-14)


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


@pytest.mark.parametrize("wanted", [1e-12, 1e-16, 1e-30, 1e-100])
def test_float64_losses_far_below_rounding_of_one_keep_their_digits(wanted: float) -> None:
    logits = torch.tensor([[3.0, 3.0 - math.log(wanted)]], dtype=torch.float64)
    loss, grad = value_and_grad(logits, torch.tensor([1]))
    assert loss.item() == pytest.approx(oracle(logits[0], 1)[0], rel=1e-12, abs=0)
    assert grad[0, 0].item() == pytest.approx(wanted, rel=1e-12, abs=0)


@pytest.mark.parametrize("margin", [15.0, 21.0, 30.5, 45.0])
def test_float64_losses_of_any_size_keep_their_digits(margin: float) -> None:
    logits = torch.tensor([[0.0, margin]], dtype=torch.float64)
    loss, grad = value_and_grad(logits, torch.tensor([0]))
    expected, expected_grad = oracle(logits[0], 0)
    assert loss.item() == pytest.approx(expected, rel=1e-15, abs=0)
    assert grad[0].tolist() == pytest.approx(expected_grad, rel=1e-14, abs=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_one_hopeless_example_is_the_margin(dtype: torch.dtype) -> None:
    loss, grad = value_and_grad(torch.tensor([[0.0, 1e4, 0.0]], dtype=dtype), torch.tensor([0]))
    assert loss.item() == 1e4
    assert grad.tolist() == [[-1.0, 1.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@given(case=rows_of_logits(bound=20), shift=st.integers(-64, 64))
def test_cross_entropy_does_not_change_when_all_logits_shift(
    dtype: torch.dtype, case: tuple[list[float], int], shift: int
) -> None:
    row, target = case
    # on a grid, so that the shift itself is exact
    logits = (torch.tensor([row], dtype=dtype) * 1024).round() / 1024
    here = cross_entropy(logits, torch.tensor([target])).item()
    there = cross_entropy(logits + shift, torch.tensor([target])).item()
    assert there == pytest.approx(here, rel=1e-12, abs=5e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_is_a_float64_loss_per_example_in_order(dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [4.0, 0.0, 0.0]], dtype=dtype)
    losses = cross_entropy(logits, torch.tensor([2, 1]))
    assert losses.dtype == torch.float64
    expected = [oracle(logits[0], 2)[0], oracle(logits[1], 1)[0]]
    assert losses.tolist() == pytest.approx(expected, rel=1e-12, abs=0)


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


def test_mse_averages_the_squares_over_an_examples_outputs() -> None:
    outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert mse(outputs, torch.tensor([[0.0, 0.0], [0.0, 4.0]])).tolist() == [2.5, 8.0]


def test_mse_flattens_examples_of_any_shape() -> None:
    outputs = torch.arange(12.0).reshape(2, 2, 3)
    assert mse(outputs, torch.zeros(2, 2, 3)).tolist() == pytest.approx([55 / 6, 451 / 6])


def test_mse_of_columns_is_one_loss_per_example() -> None:
    assert mse(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])).tolist() == [1.0, 4.0]


def test_mse_refuses_to_broadcast(refuses) -> None:
    with refuses("mse", "(5, 1)", "(5,)", "reshape"):
        mse(torch.zeros(5, 1), torch.zeros(5))


def test_accuracy_is_one_where_the_largest_logit_is_the_targets() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0], [-1.0, -2.0, -0.5]])
    right = accuracy(logits, torch.tensor([1, 1, 2]))
    assert right.tolist() == [1.0, 0.0, 1.0]
    assert right.dtype == torch.float64


def test_names_stand_for_losses_and_metrics() -> None:
    assert get_loss("mse") is mse
    assert get_loss("cross_entropy") is cross_entropy
    assert get_metric("accuracy", "mse") is accuracy


def test_a_metric_goes_with_each_named_loss() -> None:
    assert get_metric(None, "cross_entropy") is accuracy
    assert get_metric(None, "mse") is METRICS["mse"]
    assert get_metric(None, lambda outputs, targets: outputs) is None


def test_functions_are_taken_as_they_are() -> None:
    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - targets

    assert get_loss(own) is own
    assert get_metric(own, "mse") is own


def test_unknown_losses_and_metrics_are_answered_with_the_nearest(refuses) -> None:
    with refuses("loss", "'crossentropy'", "did you mean cross_entropy?"):
        get_loss("crossentropy")
    with refuses("metric", "'acuracy'", "did you mean accuracy"):
        get_metric("acuracy", "mse")
    with refuses("loss", "'hinge'", "cross_entropy, huber, mse"):
        get_loss("hinge")
