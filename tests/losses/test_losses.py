"""The losses keep their digits near zero, are torch's, and refuse what they would misread."""

from __future__ import annotations

import decimal
import math
from decimal import Decimal
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.problems import F64, generator, normal
from torch import Tensor
from torch.nn import functional

from isoloss import Problem
from isoloss.losses import (
    BCEWithLogits,
    CrossEntropy,
    Huber,
    accuracy,
    bce_with_logits,
    binary_accuracy,
    cross_entropy,
    get_loss,
    get_metric,
    huber,
    mae,
    mse,
)

F32 = torch.float32
DTYPES = (F32, F64)
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


# ---------------------------------------------------------------- digits


def oracle(logits: Tensor, target: int) -> tuple[float, list[float]]:
    """Cross-entropy and its gradient for one example, in 150 decimal digits."""
    with decimal.localcontext(prec=150):
        z = [Decimal(value) for value in logits.tolist()]
        odds = [(zj - z[target]).exp() for zj in z]
        others = sum(odds) - odds[target]
        grad = [odd / (1 + others) for odd in odds]
        grad[target] = -others / (1 + others)
        return float((1 + others).ln()), [float(g) for g in grad]


@pytest.mark.parametrize(("dtype", "bound", "relative"), [(F64, 50, 1e-13), (F32, 30, 1e-6)])
@given(data=st.data())
def test_cross_entropy_keeps_its_digits_whatever_the_logits(
    dtype: torch.dtype, bound: int, relative: float, data: st.DataObject
) -> None:
    row = data.draw(st.lists(st.floats(-bound, bound, width=32), min_size=2, max_size=6))
    target = data.draw(st.integers(0, len(row) - 1))
    logits = torch.tensor([row], dtype=dtype)
    loss, grad = grad_of(cross_entropy, logits, torch.tensor([target]))
    expected, expected_grad = oracle(logits[0], target)
    least = 1e-300 if dtype == F64 else 1e-14
    assert loss.item() == pytest.approx(expected, rel=relative, abs=least)
    assert grad[0].tolist() == pytest.approx(expected_grad, rel=relative, abs=least)


@pytest.mark.parametrize("margin", [-1e4, -45.0, -21.0, 15.0, 30.5, 69.0, 230.0])
def test_float64_losses_of_any_size_keep_their_digits(margin: float) -> None:
    logits = torch.tensor([[3.0, 3.0 + margin]], dtype=F64)
    loss, grad = grad_of(cross_entropy, logits, torch.tensor([1]))
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
    loss, grad = grad_of(cross_entropy, logits, torch.tensor([1]))
    expected_loss, expected_grad = oracle(logits[0], 1)
    assert expected_loss == pytest.approx(wanted, rel=1e-4, abs=0)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-6, abs=0)
    assert grad[0].tolist() == pytest.approx(expected_grad, rel=1e-6, abs=0)


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


# ---------------------------------------------------------------- names and refusals


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


REFUSED: list[tuple[Any, Tensor, Tensor, list[str]]] = [
    (cross_entropy, LOGITS, torch.zeros(12), ["int64", "torch.float32", "targets.long()"]),
    (cross_entropy, LOGITS, CLASSES.int(), ["int64", "torch.int32"]),
    (cross_entropy, LOGITS, LOGITS.long(), ["(n,)", "(12, 5)"]),
    (cross_entropy, LOGITS[:, 0], CLASSES, ["(n, classes)", "(12,)"]),
    (cross_entropy, LOGITS[..., None], CLASSES, ["(n, classes)", "(12, 5, 1)"]),
    *((cross_entropy, LOGITS[:1].to(d), torch.tensor([k]), [f"target {k} "])
      for k in (-100, -1, 5) for d in DTYPES),
    *((loss, LOGITS, CLASSES, ["(12, 5)", "(12,)", "reshape"])  # which would broadcast
      for loss in (mse, mae, huber, bce_with_logits)),
    *((loss, {"logits": LOGITS}, CLASSES, ["one tensor", "dict", "of your own"])
      for loss in (cross_entropy, mse, huber, bce_with_logits)),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "outputs", "targets", "words"), REFUSED)
def test_misfits_are_refused(refuses, loss: Any, outputs: Any, targets: Any, words: Any) -> None:
    with refuses(*words):
        loss(outputs, targets)


def test_targets_that_no_outputs_fit_are_refused(refuses) -> None:
    for loss, targets, words in (
        (CrossEntropy(), torch.full((3, 2), 0.8), ["cross_entropy", "sum to 1", "to 1.6"]),
        (CrossEntropy(), torch.full((3, 2), 0.4), ["cross_entropy", "sum to 1", "0.8"]),
        (CrossEntropy(), SOFT - 0.5, ["cross_entropy", "from 0 to 1", "not -0."]),
        (BCEWithLogits(), torch.tensor([0, 1, 2]), ["bce_with_logits", "0 to 1", "not 2"]),
    ):
        with refuses(*words):
            loss.check_targets(targets)
    CrossEntropy().check_targets(SOFT)
    CrossEntropy().check_targets(CLASSES)


FAILING = {
    "shapes": (lambda z, y: (z - y[:3]).square(), "RuntimeError"),
    "attribute": (lambda z, y: z.logits, "AttributeError"),
    "key": (lambda z, y: [z][y.ndim], "IndexError"),
    "type": (lambda z, y: functional.cross_entropy(z, y.int(), reduction="none"), "RuntimeError"),
}


@pytest.mark.parametrize(("function", "said"), FAILING.values(), ids=FAILING)
def test_a_loss_or_metric_that_fails_is_told_in_a_sentence(
    refuses, function: Any, said: str
) -> None:
    model, data = torch.nn.Linear(5, 5).double(), (LOGITS, CLASSES)
    words = ["the outputs of the model and the targets", said, "in line", "test_losses.py"]
    with refuses("the loss failed", *words):
        problem = Problem(model, function, data)
        problem.loss(problem.current())
    with refuses("the metric failed", *words):
        problem = Problem(model, "cross_entropy", data, metric=function)
        problem.evaluate(problem.current())
