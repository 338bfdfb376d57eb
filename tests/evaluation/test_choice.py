"""The size of a chunk is measured once, kept unless another is clearly faster, and can be fixed."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from tests.problems import generator, normal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import isoloss.evaluation as choice
from isoloss import Problem, Stop, traverse
from isoloss._kernels.chain import keep_freed_memory
from isoloss.problem import inside


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_measured", {})


def network(hidden: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def convolutional() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(32, 3))


def problem(model: nn.Module, examples: int, *shape: int, **settings: Any) -> Problem:
    inputs = normal(examples, *(shape or (5,)), seed=0).float()
    targets = torch.randint(0, 3, (examples,), generator=generator(1))
    return Problem(model, "cross_entropy", (inputs, targets), **settings)


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> list[int]:
    """Let sizes take these times, and say which were measured."""
    asked: list[int] = []

    def taken(network: Any, chunks: Any, loss: Any, size: int) -> float:
        asked.append(size)
        return seconds.get(size, 10.0)

    monkeypatch.setattr(choice, "_seconds", taken)
    return asked


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [({1000: 1.0, 250: 0.5, 125: 0.7}, 250), ({1000: 1.0, 500: 0.95}, 1000), ({1000: 9.0}, 1000)],
)
def test_another_size_is_taken_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], expected: int
) -> None:
    asked = pretend(monkeypatch, seconds)
    one = problem(network(), 1000)
    assert one.chunk_size == expected
    assert sorted(asked) == [125, 250, 500, 1000] or sorted(asked) == [63, 125, 250, 500, 1000]
    assert all(size <= 1024 for size in asked)


def test_a_kind_of_problem_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {250: 0.5})
    first, second, other = (problem(network(h), 1000) for h in (6, 6, 7))
    assert first.chunk_size == second.chunk_size == 250
    count = len(asked)
    assert len(set(asked)) == count
    second.loss_and_grad(second.current())
    assert len(asked) == count
    assert other.chunk_size == 250
    assert len(asked) == 2 * count


def test_functions_are_told_apart_for_as_long_as_they_live(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {16: 0.5})
    parameters = {"w": torch.ones(1)}
    data = (torch.ones(50, 1, 2, 2), torch.ones(50, 1))
    for _ in range(20):  # Python gives the next one the same id, and the same repr
        asked.clear()

        def model(p: Any, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True) * p["w"]

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs - targets).square().sum(1)

        for _ in range(2):
            Problem(model, loss, data, parameters=parameters, chunk_size=None).chunk_size  # noqa: B018
        assert sorted(asked) == [25, 50]


@pytest.mark.parametrize("bytes_at_most", [None, 1])
def test_images_of_a_model_that_is_not_plain_are_tried_by_many(
    monkeypatch: pytest.MonkeyPatch, bytes_at_most: int | None
) -> None:
    asked = pretend(monkeypatch, {750: 0.5})
    if bytes_at_most is not None:
        monkeypatch.setattr(choice, "MOST_BYTES", bytes_at_most)
    one = problem(convolutional(), 3000, 1, 6, 6)
    if bytes_at_most is None:
        assert one.chunk_size == 750
        assert sorted(asked) == [24, 47, 50, 94, 188, 375, 750]
    else:
        assert one.chunk_size == 50
        assert max(asked) <= 128


def test_nothing_is_measured_without_a_gradient_or_with_a_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = pretend(monkeypatch, {})
    free = problem(network(), 1000)
    free.loss(free.current())
    free.evaluate(free.current())
    free.example_losses(free.current())
    one = problem(network(), 1000, chunk_size=300)
    one.loss_and_grad(one.current())
    assert one.chunk_size == 300
    assert asked == []


@pytest.mark.parametrize("what", ["few examples", "not plain", "a stream", "few images"])
def test_where_there_is_nothing_to_choose_the_size_is_none(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    asked = pretend(monkeypatch, {})
    loader = DataLoader(TensorDataset(torch.ones(100, 5), torch.zeros(100).long()), batch_size=50)
    one = {
        "few examples": lambda: problem(network(), 60),
        "not plain": lambda: problem(nn.Sequential(*network(), nn.Sigmoid()), 1000),
        "a stream": lambda: Problem(network(), "cross_entropy", loader),
        "few images": lambda: problem(convolutional(), 15, 1, 6, 6),
    }[what]()
    assert one.chunk_size is None
    assert asked == []
    assert torch.isfinite(one.loss_and_grad(one.current())[1]).all()


@pytest.mark.parametrize("images", [False, True])
def test_the_chosen_size_given_again_gives_the_same_bits(images: bool) -> None:
    model, shape = (convolutional(), (1, 6, 6)) if images else (network(), (5,))
    chosen = problem(model, 500, *shape)
    theta = chosen.current()
    before = torch.get_rng_state()
    value, grad = chosen.loss_and_grad(theta)
    assert torch.equal(torch.get_rng_state(), before)
    assert chosen.evaluations == 1
    assert chosen.chunk_size is not None
    exact = chosen.with_dtype(torch.float64)  # chosen for anew
    assert exact.loss_and_grad(theta.double())[0].item() == pytest.approx(value.item(), rel=1e-5)
    fixed = problem(model, 500, *shape, chunk_size=chosen.chunk_size)
    assert torch.equal(fixed.loss_and_grad(theta)[1], grad)
    assert torch.equal(fixed.loss_and_grad(theta)[0], value)


# ---------------------------------------------------------------- memory and other devices


def faults() -> int:
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_freed_memory_is_used_again() -> None:
    keep_freed_memory.cache_clear()
    keep_freed_memory()
    torch.ones(2**21)
    before = faults()
    for _ in range(20):
        torch.ones(2**21)  # 8 MiB, 2048 pages
    if "glibc" not in " ".join(__import__("platform").libc_ver()):
        pytest.skip("another C library")
    assert faults() - before < 8 * 2048


class NoSynchronization(TorchDispatchMode):
    """Refuses what would make the CPU wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "bce_with_logits", "huber"])
def test_an_evaluation_by_autograd_never_asks_for_a_number(loss: str) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3))
    inputs = normal(12, 5, seed=0).float()
    targets: Tensor = torch.rand(12, 3, generator=generator(1))
    if loss == "cross_entropy":
        targets = torch.randint(0, 3, (12,), generator=generator(1))
    one = Problem(model, loss, (inputs, targets), chunk_size=5)
    theta = one.current()
    one.hvp(theta, theta)  # the first looks for functions with a backward of their own
    with NoSynchronization():
        one.loss_and_grad(theta)
        one.loss(theta)
        one.hvp(theta, theta)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("make", [network, convolutional])
def test_on_cuda_an_evaluation_does_not_synchronize_and_agrees(make: Any) -> None:
    shape = (1, 6, 6) if make is convolutional else (5,)
    model = make()
    here, there = (problem(model, 500, *shape, device=d) for d in ("cpu", "cuda"))
    theta = there.current()
    for k in range(3):  # recorded and compared at the first two
        there.loss_and_grad(theta + 1e-3 * k)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value, grad = there.loss_and_grad(theta)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, expected_grad = here.loss_and_grad(theta.cpu())
    assert (value.device.type, grad.device.type) == ("cuda", "cuda")
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(grad.cpu(), expected_grad, rtol=1e-4, atol=1e-6)
    assert there.chunk_size == 500  # all at once


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("precision", ["exact", "tf32", "bf16"])
def test_on_cuda_walks_repeat_to_the_bit_and_hold_the_level(precision: str) -> None:
    def walk() -> Any:
        torch.manual_seed(0)
        there = problem(convolutional(), 60, 1, 6, 6, device="cuda", precision=precision)
        return traverse(there, stop=Stop(evaluations=60), progress=False)

    first, second = walk(), walk()
    assert torch.equal(first.points, second.points)
    judge = problem(convolutional(), 60, 1, 6, 6).with_dtype(torch.float64)
    for point in first.points:
        assert judge.loss(point.cpu().double()).item() == pytest.approx(first.level, rel=1.1e-3)


def test_counting_saved_bytes_leaves_no_graph_behind() -> None:
    class Marker:
        pass

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, marker: Marker) -> Tensor:
            ctx.marker = marker
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return grad, None

    markers = [Marker()]
    weight, alive = torch.ones(6, requires_grad=True), weakref.ref(markers[0])
    # which saves its outputs
    sizes = choice.saved_bytes(lambda: Marked.apply(weight, markers.pop()).tanh())
    assert list(sizes.values()) == [24]
    assert alive() is None


# ---------------------------------------------------------------- layouts


def image_problem(shortcut: nn.Module) -> Problem:
    model = nn.Sequential(shortcut, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    channels = shortcut.in_channels
    outputs = torch.zeros(50, shortcut.out_channels)
    return Problem(model, "mse", (torch.randn(50, channels, 8, 8), outputs))


@pytest.mark.parametrize(
    ("layer", "safe"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), False),  # corrupts the heap in torch 2.13, channels last
        (nn.Conv2d(8, 8, 1, stride=2, groups=2), False),
        (nn.Conv2d(12, 16, 1, stride=2), False),
        (nn.Conv2d(16, 16, 1, stride=2), True),
        (nn.Conv2d(4, 8, 1), True),
        (nn.Conv2d(4, 8, 3, stride=2), True),
    ],
)
def test_images_are_channels_last_where_torch_can_do_it(layer: nn.Module, safe: bool) -> None:
    problem = image_problem(layer)
    (inputs, *_) = next(iter(inside(problem).chunks))
    assert inputs.is_contiguous(memory_format=torch.channels_last) is safe


@pytest.mark.parametrize("channels", [4, 12])
def test_a_strided_convolution_of_few_channels_can_be_differentiated_many_times(
    channels: int,
) -> None:
    problem = image_problem(nn.Conv2d(channels, 8, 1, stride=2))
    theta = problem.current()
    first = problem.loss_and_grad(theta)[1]
    for _ in range(20):
        assert torch.equal(problem.loss_and_grad(theta)[1], first)
