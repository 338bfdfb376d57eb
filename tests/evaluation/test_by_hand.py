"""Plain networks are differentiated by hand, as autograd would; all others by autograd."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.problems import F64, generator, normal
from torch import Tensor, nn
from torch.nn import functional

from isoloss import InputError, Problem
from isoloss.evaluation.autograd import Autograd
from isoloss.evaluation.by_hand import ByHand
from isoloss.evaluation.chain import plain
from isoloss.evaluation.layers import Tanh
from isoloss.losses import CrossEntropy


def seeded(*layers: Callable[[], nn.Module]) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*(make() for make in layers)).double()


def dense() -> nn.Sequential:
    return seeded(lambda: nn.Linear(4, 6), nn.Tanh, lambda: nn.Linear(6, 3))


def images() -> nn.Sequential:
    return seeded(
        lambda: nn.Conv2d(2, 5, 3), nn.Tanh, lambda: nn.AvgPool2d(2),
        lambda: nn.Conv2d(5, 4, 3), nn.ReLU, lambda: nn.AvgPool2d(2),
        nn.Flatten, lambda: nn.Linear(4, 3),
    )  # fmt: skip


PLAIN: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "dense": (dense, (4,)),
    "one layer": (lambda: seeded(lambda: nn.Linear(4, 3)), (4,)),
    "linear after linear": (
        lambda: seeded(lambda: nn.Linear(4, 5), lambda: nn.Linear(5, 3)), (4,),
    ),
    "ends in tanh": (lambda: seeded(lambda: nn.Linear(4, 3), nn.Tanh), (4,)),
    "nested": (
        lambda: nn.Sequential(dense(), seeded(lambda: nn.Linear(3, 3), nn.Tanh)), (4,),
    ),
    "images": (images, (2, 10, 13)),
    "flattened at once": (lambda: seeded(nn.Flatten, lambda: nn.Linear(24, 3)), (2, 3, 4)),
    "strides and padding": (
        lambda: seeded(
            lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1)), nn.ReLU,
            lambda: nn.Conv2d(4, 3, 3, stride=2, padding=(1, 2)), nn.Tanh,
            nn.Flatten, lambda: nn.Linear(3 * 2 * 4, 3),
        ), (2, 8, 6),
    ),
    "many channels": (
        lambda: seeded(lambda: nn.Conv2d(9, 3, 2), nn.Tanh, nn.Flatten, lambda: nn.Linear(12, 3)),
        (9, 3, 3),
    ),
    "padded at once": (
        lambda: seeded(lambda: nn.Conv2d(1, 3, 3, padding=1), nn.Flatten, lambda: nn.Linear(27, 3)),
        (1, 3, 3),
    ),
    "pooled first and last": (
        lambda: seeded(
            lambda: nn.AvgPool2d(2), nn.Tanh, lambda: nn.Conv2d(2, 4, 2), lambda: nn.AvgPool2d(2),
            nn.ReLU, nn.Flatten, lambda: nn.Linear(4, 3),
        ), (2, 6, 7),
    ),
    "pools of all kinds": (
        lambda: seeded(
            lambda: nn.Conv2d(2, 3, 2),
            lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), nn.Tanh,
            lambda: nn.AvgPool2d((1, 2), count_include_pad=False, divisor_override=3),
            nn.Flatten, lambda: nn.Linear(3 * 5 * 2, 3),
        ), (2, 9, 9),
    ),
}  # fmt: skip


def data(shape: tuple[int, ...], loss: str, examples: int = 23) -> tuple[Tensor, Tensor]:
    inputs = normal(examples, *shape, seed=1)
    if loss == "mse":
        return inputs, normal(examples, 3, seed=2)
    return inputs, torch.randint(0, 3, (examples,), generator=generator(2))


def reference(model: nn.Module, loss: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean loss and flat gradient by plain torch."""
    function = functional.mse_loss if loss == "mse" else functional.cross_entropy
    total = function(model(pair[0]), pair[1])
    grads = torch.autograd.grad(total, list(model.parameters()))
    return total.detach(), torch.cat([grad.reshape(-1) for grad in grads])


def is_by_hand(problem: Problem) -> bool:
    return isinstance(problem._evaluation, ByHand)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "huber"])
@pytest.mark.parametrize("chunk_size", [23, 5, 1])
def test_it_agrees_with_autograd_to_rounding(name: str, loss: str, chunk_size: int) -> None:
    make, shape = PLAIN[name]
    model, pair = make(), data(shape, "mse" if loss == "huber" else loss)
    problem = Problem(model, loss, pair, chunk_size=chunk_size)
    assert is_by_hand(problem)
    value, grad = problem.loss_and_grad(problem.current())
    if loss == "huber":
        other = Problem(lambda p, x: torch.func.functional_call(model, dict(p), x), loss, pair,
                        parameters=dict(model.named_parameters()))  # fmt: skip
        assert not is_by_hand(other)
        expected, expected_grad = other.loss_and_grad(other.current())
    else:
        expected, expected_grad = reference(model, loss, pair)
    assert value.item() == pytest.approx(expected.item(), rel=1e-13)
    assert (grad - expected_grad).norm() <= 1e-12 * expected_grad.norm()
    assert problem.loss(problem.current()) == value
    assert problem.evaluate(problem.current())[0] == pytest.approx(expected.item(), rel=1e-13)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_in_float32_it_agrees_with_float64_as_autograd_does(name: str, loss: str) -> None:
    make, shape = PLAIN[name]
    model, pair = make(), data(shape, loss)
    expected, expected_grad = reference(model, loss, pair)
    problem = Problem(model, loss, pair, dtype=torch.float32)
    assert is_by_hand(problem)
    value, grad = problem.loss_and_grad(problem.current())
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (grad.double() - expected_grad).norm() <= 2e-6 * expected_grad.norm()


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


def hooked(register: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = dense()
        if register == "register_forward_hook":
            model[0].register_forward_hook(lambda _, __, y: 2 * y)
        elif register == "register_forward_pre_hook":
            model[1].register_forward_pre_hook(lambda _, x: (2 * x[0],))
        elif register == "register_full_backward_hook":
            model[1].register_full_backward_hook(lambda _, gi, __: (2 * gi[0],))
        else:
            model[1].register_full_backward_pre_hook(lambda _, go: (2 * go[0],))
        return model

    return make


def changed(change: Callable[[nn.Sequential], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = dense()
        change(model)
        return model

    return make


def tied() -> nn.Module:
    model = seeded(lambda: nn.Linear(4, 4), nn.Tanh, lambda: nn.Linear(4, 4), nn.Tanh,
                   lambda: nn.Linear(4, 3))  # fmt: skip
    model[2].weight = model[0].weight
    return model


def twice() -> nn.Module:
    layer = nn.Linear(4, 4).double()
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 3).double())


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Row(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def override(model: nn.Sequential) -> None:
    model[1].forward = lambda x: x.sin()  # type: ignore[method-assign]


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "a forward hook": hooked("register_forward_hook"),
    "a forward hook before": hooked("register_forward_pre_hook"),
    "a backward hook": hooked("register_full_backward_hook"),
    "a backward hook before": hooked("register_full_backward_pre_hook"),
    "a hook of the whole": changed(lambda m: m.register_forward_hook(lambda _, __, y: 2 * y)),
    "a frozen layer": changed(lambda m: m[0].requires_grad_(False)),
    "a frozen bias": changed(lambda m: m[2].bias.requires_grad_(False)),
    "a shared matrix": tied,
    "a layer used twice": twice,
    "no bias": lambda: seeded(lambda: nn.Linear(4, 3, bias=False)),
    "a subclass of a layer": lambda: seeded(lambda: Doubled(4, 3)),
    "a subclass of Sequential": lambda: Row(nn.Linear(4, 3)).double(),
    "another forward": changed(override),
    "a parametrization": changed(lambda m: nn.utils.parametrizations.weight_norm(m[0])),
    "another activation": lambda: seeded(lambda: nn.Linear(4, 3), nn.Sigmoid),
    "dropout at rest": lambda: seeded(lambda: nn.Linear(4, 3), nn.Dropout).eval(),
    "an activation first": lambda: seeded(nn.Tanh, lambda: nn.Linear(4, 3)),
    "two activations": lambda: seeded(lambda: nn.Linear(4, 3), nn.Tanh, nn.ReLU),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_plain_is_left_to_autograd(name: str) -> None:
    model, pair = OTHERS[name](), data((4,), "mse")
    assert plain(model) is None
    problem = Problem(model, "mse", pair)
    value, grad = problem.loss_and_grad(problem.current())
    total = functional.mse_loss(model(pair[0]), pair[1])
    leaves = [p for p in model.parameters() if p.requires_grad]
    grads = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, leaves)])
    assert value.item() == pytest.approx(total.item(), rel=1e-13)
    assert (grad - grads).norm() <= 1e-12 * grads.norm()


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(2, 2, 2, dilation=2),
        lambda: nn.Conv2d(2, 2, 3, groups=2),
        lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        lambda: nn.Conv2d(2, 2, 3, padding="same"),
        lambda: nn.Conv2d(2, 2, 3, bias=False),
        lambda: nn.Conv2d(2, 2, 1, stride=2),  # torch's kernel writes past the end, channels last
    ],
)
def test_convolutions_of_other_kinds_are_left_to_autograd(layer: Callable[[], nn.Module]) -> None:
    model = seeded(layer, nn.Tanh, lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten)
    assert plain(model) is None
    assert plain(seeded(layer, nn.Tanh)) is None
    inputs = normal(6, 2, 5, 5, seed=0)
    problem = Problem(model, "cross_entropy", (inputs, torch.zeros(6, dtype=torch.int64)))
    expected, grad = reference(model, "cross_entropy", (inputs, torch.zeros(6, dtype=torch.int64)))
    assert problem.loss_and_grad(problem.current())[0].item() == pytest.approx(expected.item())
    torch.testing.assert_close(problem.loss_and_grad(problem.current())[1], grad)


def test_flattening_some_axes_is_left_to_autograd() -> None:
    assert plain(seeded(lambda: nn.Flatten(1, 2), lambda: nn.Linear(4, 3))) is None


@pytest.mark.parametrize("case", ["integer inputs", "two axes too many", "a dictionary"])
def test_inputs_of_other_kinds_are_left_to_autograd(case: str) -> None:
    inputs: Any = {
        "integer inputs": torch.ones(5, 4, dtype=torch.int64),
        "two axes too many": normal(5, 2, 2, 4, seed=0),
        "a dictionary": {"input": normal(5, 4, seed=0)},
    }[case]
    problem = Problem(dense(), lambda o, t: o.flatten(1).square().sum(1), (inputs, torch.ones(5)))
    assert isinstance(problem._evaluation, Autograd)
    if case == "integer inputs":
        with pytest.raises(InputError, match="float"):
            problem.loss_and_grad(problem.current())
    else:
        assert problem.loss_and_grad(problem.current())[1].norm() > 0


def test_inputs_that_do_not_fit_are_refused_with_torchs_own_reason() -> None:
    pair = (normal(5, 7, seed=0), torch.zeros(5, dtype=torch.int64))
    problem = Problem(dense(), "cross_entropy", pair)
    with pytest.raises(InputError, match="5x7"):
        problem.loss_and_grad(problem.current())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_target_that_is_no_class_is_named(dtype: torch.dtype) -> None:
    pair = (normal(5, 4, seed=0), torch.tensor([0, 1, 3, 0, 0]))
    problem = Problem(dense(), "cross_entropy", pair, dtype=dtype)
    with pytest.raises(InputError, match="target 3 is no class"):
        problem.loss_and_grad(problem.current())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
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


def test_nan_stays_nan() -> None:
    problem = Problem(dense(), "cross_entropy", data((4,), "cross_entropy"), dtype=torch.float32)
    theta = problem.current()
    theta[0] = torch.nan
    value, grad = problem.loss_and_grad(theta)
    assert value.isnan()
    assert grad.isnan().any()


def test_a_loss_that_works_in_place_and_gives_its_outputs_back_is_safe() -> None:
    problem = Problem(
        seeded(lambda: nn.Linear(4, 1)),
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


def test_the_inputs_are_not_changed() -> None:
    for make, shape in PLAIN.values():
        pair = data(shape, "mse")
        kept = pair[0].clone()
        problem = Problem(make(), "mse", pair)
        problem.loss_and_grad(problem.current())
        assert torch.equal(pair[0], kept)


def test_hvp_goes_through_autograd() -> None:
    problem = Problem(dense(), "mse", data((4,), "mse"), chunk_size=6)
    theta, v = problem.current(), normal(problem.size, seed=3)
    ahead, behind = (problem.loss_and_grad(theta + s * 1e-6 * v)[1] for s in (1, -1))
    product = problem.hvp(theta, v)
    assert (product - (ahead - behind) / 2e-6).norm() <= 1e-7 * product.norm()


def test_a_copy_of_a_problem_is_evaluated_at_its_own_point() -> None:
    problem = Problem(dense(), "mse", data((4,), "mse"))
    theta = problem.current()
    before = problem.loss_and_grad(theta)
    other = copy.deepcopy(problem)
    other.loss_and_grad(theta + 1)
    assert torch.equal(other.loss_and_grad(theta)[1], before[1])
    assert not torch.equal(other.loss_and_grad(theta + 1)[0], before[0])


def test_the_fast_tanh_is_within_rounding_of_the_product_before_it() -> None:
    x = torch.cat([torch.linspace(-20, 20, 100_001), torch.linspace(-1e-3, 1e-3, 10_001)])
    actual = Tanh((len(x),), torch.float32).forward(x.clone())
    assert (actual.double() - x.double().tanh()).abs().max() < 2e-7
    assert actual.abs().max() <= 1
    ends = torch.tensor([-torch.inf, -100.0, 0.0, 100.0, torch.inf])
    assert Tanh((5,), torch.float32).forward(ends).tolist() == [-1, -1, 0, 1, 1]
    assert Tanh((1,), torch.float32).forward(torch.tensor([torch.nan])).isnan().all()


def test_a_users_loss_is_called_in_the_users_thread_alone() -> None:
    seen = set()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.add(threading.get_ident())
        return (outputs - targets).square().mean(1)

    model = seeded(lambda: nn.Linear(200, 200), nn.Tanh, lambda: nn.Linear(200, 3))
    problem = Problem(model, loss, data((200,), "mse", 800), chunk_size=100)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        problem.loss_and_grad(problem.current())
    finally:
        torch.set_num_threads(before)
    assert seen == {threading.get_ident()}
