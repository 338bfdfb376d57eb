"""Plain networks are differentiated by hand, as autograd would; all others by autograd."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.plain_models import OTHERS, PLAIN, REORDERED, dense, seeded
from tests.problems import F64, generator, normal
from torch import Tensor, nn
from torch.nn import functional

from isoloss import InputError, Problem
from isoloss import evaluation as choice
from isoloss._kernels import images
from isoloss._kernels.chain import Chain, plain
from isoloss.evaluation import choose
from isoloss.evaluation.autograd import Autograd
from isoloss.evaluation.by_hand import ByHand
from isoloss.flat import flatten
from isoloss.losses import CrossEntropy

BY_HAND = PLAIN | REORDERED
DTYPES = (F64, torch.float32)
LOSSES = {
    "cross_entropy": functional.cross_entropy,
    "mse": functional.mse_loss,
    "huber": functional.huber_loss,
}


def data(shape: tuple[int, ...], loss: str, examples: int = 23) -> tuple[Tensor, Tensor]:
    inputs = normal(examples, *shape, seed=1)
    if loss != "cross_entropy":
        return inputs, normal(examples, 3, seed=2)
    return inputs, torch.randint(0, 3, (examples,), generator=generator(2))


def reference(model: nn.Module, loss: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean loss and flat gradient by plain torch."""
    total = LOSSES[loss](model(pair[0]), pair[1])
    leaves = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return total.detach(), torch.cat([grad.reshape(-1) for grad in grads])


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations and layers as on a GPU."""
    monkeypatch.setattr("isoloss.evaluation.by_hand.on_cpu", lambda device: False)
    monkeypatch.setattr(images, "_by_patches", lambda place: True)
    monkeypatch.setattr(images, "_by_tiles", lambda place: images.tile(place.part.module))


def is_by_hand(problem: Problem) -> bool:
    return isinstance(problem._evaluation, ByHand)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialized holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("chunk_size", "patches"), [(23, False), (5, False), (1, False), (23, True), (5, True)]
)
def test_it_agrees_with_autograd_to_rounding(
    name: str,
    loss: str,
    chunk_size: int,
    patches: bool,
    poisoned: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if patches:
        as_on_a_gpu(monkeypatch)
    make, shape = BY_HAND[name]
    model, pair = make(), data(shape, loss)
    problem, single = (
        Problem(model, loss, pair, chunk_size=chunk_size, dtype=dtype) for dtype in DTYPES
    )
    assert is_by_hand(problem)
    assert is_by_hand(single)
    kept = pair[0].clone()
    for _ in range(2):  # what an evaluation left behind does not matter
        theta = flatten(list(model.parameters()))
        value, grad = problem.loss_and_grad(theta)
        expected, expected_grad = reference(model, loss, pair)
        assert value.item() == pytest.approx(expected.item(), rel=1e-13)
        assert (grad - expected_grad).norm() <= 1e-12 * expected_grad.norm()
        value_32, grad_32 = single.loss_and_grad(theta.float())
        assert value_32.item() == pytest.approx(expected.item(), rel=2e-6)
        assert (grad_32.double() - expected_grad).norm() <= 2e-6 * expected_grad.norm()
        assert problem.loss(theta).item() == pytest.approx(value.item(), rel=1e-13 * patches, abs=0)
        assert problem.evaluate(theta)[0] == pytest.approx(expected.item(), rel=1e-13)
        torch.nn.utils.vector_to_parameters(0.9 * theta, model.parameters())
    assert torch.equal(pair[0], kept)
    theta = torch.full_like(theta, torch.nan).float()
    assert single.loss_and_grad(theta)[0].isnan()
    assert single.loss_and_grad(theta)[1].isnan().any()


@given(
    seed=st.integers(0, 10**6), layers=st.integers(1, 4), examples=st.integers(1, 40),
    chunk_size=st.integers(1, 41), loss=st.sampled_from(["cross_entropy", "mse"]),
)  # fmt: skip
def test_any_dense_network_agrees_with_autograd(
    seed: int, layers: int, examples: int, chunk_size: int, loss: str
) -> None:
    torch.manual_seed(seed)
    sizes = [*(int(torch.randint(1, 9, ())) for _ in range(layers)), 3]
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), (nn.Tanh, nn.ReLU)[int(torch.randint(0, 2, ()))]()]
    model = nn.Sequential(*parts[:-1]).double()
    pair = data((sizes[0],), loss, examples)
    problem = Problem(model, loss, pair, chunk_size=chunk_size)
    value, grad = problem.loss_and_grad(problem.current())
    assert is_by_hand(problem)
    expected, expected_grad = reference(model, loss, pair)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert (grad - expected_grad).norm() <= 1e-12 * expected_grad.norm() + 1e-300


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_plain_is_left_to_autograd(name: str, poisoned: None) -> None:
    model, pair = OTHERS[name](), data((4,), "mse")
    assert plain(model) is None
    pair = (pair[0], normal(*model(pair[0]).shape, seed=2))
    problem = Problem(model, "mse", pair)
    value, grad = problem.loss_and_grad(problem.current())
    total, grads = reference(model, "mse", pair)
    assert value.item() == pytest.approx(total.item(), rel=1e-13)
    assert (grad - grads).norm() <= 1e-12 * grads.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_of_few_digits_are_not_plain(dtype: torch.dtype) -> None:
    assert plain(dense()) is not None
    assert plain(dense().to(dtype)) is None
    assert plain(nn.Sequential(dense().to(dtype), dense())) is None
    assert plain(lambda x: x) is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 2, dilation=2),
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, bias=False),
        nn.Conv2d(2, 2, 1, stride=2),  # torch's kernel writes past the end, channels last
        nn.Flatten(1, 2),
    ],
)
def test_layers_of_other_kinds_are_left_to_autograd(layer: nn.Module) -> None:
    model = seeded(nn.Conv2d(2, 2, 1), layer, nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1))
    assert plain(seeded(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))) is not None
    assert plain(model[:-1]) is None
    if isinstance(layer, nn.Conv2d):
        model = nn.Sequential(model, nn.Flatten())
        pair = normal(6, 2, 5, 5, seed=0), torch.zeros(6, dtype=torch.int64)
        problem = Problem(model, "cross_entropy", pair)
        expected, grad = reference(model, "cross_entropy", pair)
        assert problem.loss_and_grad(problem.current())[0].item() == pytest.approx(expected.item())
        torch.testing.assert_close(problem.loss_and_grad(problem.current())[1], grad)


UNUSUAL: dict[str, tuple[nn.Module, Any]] = {
    "integers": (dense(), torch.ones(5, 4, dtype=torch.int64)),
    "two axes too many": (dense(), normal(5, 2, 2, 4, seed=0)),
    "a dictionary": (dense(), {"input": normal(5, 4, seed=0)}),
    "windows too large": (seeded(nn.AvgPool2d(4), nn.Conv2d(2, 1, 1)),
                          normal(5, 2, 3, 3, seed=0)),
    "nothing to flatten": (seeded(nn.Flatten(), nn.Linear(1, 1)), normal(5, seed=0)),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSUAL)
def test_inputs_of_other_kinds_are_left_to_autograd(case: str) -> None:
    model, inputs = UNUSUAL[case]
    problem = Problem(model, lambda o, t: o.flatten(1).square().sum(1), (inputs, torch.ones(5)))
    assert isinstance(problem._evaluation, Autograd)
    if case in ("two axes too many", "a dictionary"):
        assert problem.loss_and_grad(problem.current())[1].norm() > 0
    else:
        with pytest.raises(InputError, match="cannot"):
            problem.loss_and_grad(problem.current())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_target_that_is_no_class_is_named(dtype: torch.dtype) -> None:
    pair = (normal(5, 4, seed=0), torch.tensor([0, 1, 3, 0, 0]))
    problem = Problem(dense(), "cross_entropy", pair, dtype=dtype)
    with pytest.raises(InputError, match="target 3 is no class"):
        problem.loss_and_grad(problem.current())


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_and_smoothing_act(dtype: torch.dtype) -> None:
    pair, weights = data((4,), "cross_entropy"), torch.rand(23, generator=generator(4)).double()
    model = dense()
    for loss, smoothing in (("cross_entropy", 0.0), (CrossEntropy(label_smoothing=0.2), 0.2)):
        problem = Problem(model, loss, pair, weights=weights, dtype=dtype, chunk_size=6)
        assert is_by_hand(problem)
        each = functional.cross_entropy(
            model(pair[0]), pair[1], reduction="none", label_smoothing=smoothing
        )
        total = (each * weights).sum() / weights.sum()
        grads = torch.autograd.grad(total, list(model.parameters()))
        value, grad = problem.loss_and_grad(problem.current())
        close = 1e-12 if dtype == F64 else 2e-6
        assert value.item() == pytest.approx(total.item(), rel=close)
        expected = torch.cat([g.reshape(-1) for g in grads])
        assert (grad.double() - expected).norm() <= close * expected.norm()


def test_a_loss_that_works_in_place_and_gives_its_outputs_back_is_safe() -> None:
    problem = Problem(
        seeded(nn.Linear(4, 1)),
        lambda o, t: o.sub_(t[:, None]).square_()[:, 0],
        (normal(9, 4, seed=0), normal(9, seed=1)),
        chunk_size=2,
    )
    assert is_by_hand(problem)
    theta = problem.current()
    each = problem.example_losses(theta)
    assert len(each.unique()) == 9
    value, _ = problem.loss_and_grad(theta)
    assert value.item() == pytest.approx(each.mean().item(), rel=1e-14)


def test_a_copy_has_its_own_point_and_products_go_through_autograd() -> None:
    problem = Problem(dense(), "mse", data((4,), "mse"), chunk_size=6)
    theta, v = problem.current(), normal(problem.size, seed=3)
    before = problem.loss_and_grad(theta)
    other = copy.deepcopy(problem)
    ahead, behind = (other.loss_and_grad(theta + s * 1e-6 * v)[1] for s in (1, -1))
    assert torch.equal(problem.loss_and_grad(theta)[1], before[1])
    assert not torch.equal(ahead, before[1])
    product = problem.hvp(theta, v)
    assert (product - (ahead - behind) / 2e-6).norm() <= 1e-7 * product.norm()


def test_the_fast_tanh_is_within_rounding_of_the_product_before_it() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh())
    parts, at = plain(model), [torch.ones(1, 1), torch.zeros(1)]
    assert parts is not None

    def tanh(x: Tensor) -> Tensor:
        return Chain(parts, at, (len(x), 1), exact=False).outputs(at, x[:, None])[:, 0]

    x = torch.cat([torch.linspace(-20, 20, 100_001), torch.linspace(-1e-3, 1e-3, 10_001)])
    actual = tanh(x)
    assert (actual.double() - x.double().tanh()).abs().max() < 2e-7
    assert actual.abs().max() <= 1
    ends = torch.tensor([-torch.inf, -100.0, 0.0, 100.0, torch.inf])
    assert tanh(ends).tolist() == [-1, -1, 0, 1, 1]
    assert tanh(torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("patches", [False, True])
def test_the_room_of_a_network_is_that_of_its_buffers(
    name: str, patches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if patches:
        as_on_a_gpu(monkeypatch)
    make, shape = PLAIN[name]
    model = make()
    parts, at = plain(model), list(model.parameters())
    assert parts is not None
    chain = Chain(parts, at, (200, *shape), exact=True)
    found, seen, queue = 0, {p.untyped_storage().data_ptr() for p in at}, [*vars(chain).values()]
    while queue:
        one = queue.pop()
        if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in seen:
            seen.add(one.untyped_storage().data_ptr())
            found += one.untyped_storage().nbytes() // one.itemsize
        elif isinstance(one, (list, tuple)):
            queue += one
        elif type(one).__module__.startswith("isoloss"):
            queue += vars(one).values()
    kernels = 2 * sum(p.numel() for p in at)  # which are no matter of the batch
    assert found - kernels <= 1.05 * chain.room
    assert chain.room <= 2 * found + kernels


@pytest.mark.parametrize("most_bytes", [3e6, 5e6, 1e9])
def test_as_many_examples_are_taken_at_once_as_the_buffers_leave_room_for(
    most_bytes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    both = nn.Conv2d(2, 16, 3), nn.Tanh(), nn.Conv2d(16, 16, 3), nn.Tanh()
    model = seeded(*both, nn.Flatten(), nn.Linear(16 * 4 * 2, 3))
    problem = Problem(model, "mse", data((2, 8, 6), "mse", 200))
    own = problem._inside
    size = choice._equal_parts(own.network, own.chunks, own.loss, most_bytes)
    evaluation = choose(own.network, own.chunks.recut(size), own.loss)
    assert isinstance(evaluation, ByHand)
    assert evaluation.room <= most_bytes
    assert (size == 200) == (most_bytes == 1e9)


def test_outputs_alone_leave_no_buffers_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    make, shape = PLAIN["images"]
    problem = Problem(make(), "cross_entropy", data(shape, "cross_entropy"))
    evaluation = problem._evaluation
    assert isinstance(evaluation, ByHand)
    problem.loss(problem.current())
    problem.evaluate(problem.current())
    assert not evaluation._free
    evaluation.loss_and_grad(problem.current())
    assert evaluation._free
