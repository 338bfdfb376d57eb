"""Walking step by step, and points of a path back in the user's own model, in plain torch."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models import kinds
from tests.problems import F64, classifier, normal
from torch import Tensor, nn

import isoloss
from isoloss import Outcome, Problem, Stop

INPUTS, CLASSES = normal(40, 4, seed=1), torch.arange(40) % 3


def with_batch_norm(frozen: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6), nn.Linear(6, 3)
        ).double()
        model.train()
        model(3 * INPUTS + 1)  # running statistics of their own
        model[3].requires_grad_(not frozen)
    return model.eval()


def plain_loss(model: nn.Module) -> float:
    return nn.functional.cross_entropy(model(INPUTS), CLASSES).item()


def walked(model: nn.Module, steps: int = 6) -> isoloss.Path:
    problem = Problem(model, "cross_entropy", (INPUTS, CLASSES))
    return isoloss.traverse(problem, stop=Stop(steps=steps), progress=False)


# ---------------------------------------------------------------- step by step


def test_the_rows_of_the_iterator_are_those_of_the_path() -> None:
    problem = classifier().problem()
    rows = list(isoloss.walk(problem, stop=Stop(steps=5)))
    path = isoloss.traverse(problem, stop=Stop(steps=5), progress=False)
    assert [row["kind"] for row in rows] == ["start", *["sqp"] * 5]
    for name in ("loss", "regularizer", "evaluations"):
        assert [row[name] for row in rows] == path.steps[name].tolist()


def test_leaving_the_loop_gives_the_path_so_far_and_it_may_continue() -> None:
    steps = isoloss.walk(classifier().problem(), stop=Stop(steps=8))
    for row in steps:
        if row["step"] == 3:
            break
    path = steps.path
    assert path.outcome is Outcome.INTERRUPTED
    assert len(path.steps) == 4
    rest = list(steps)
    assert rest[0]["step"] == 4
    assert steps.path.outcome is Outcome.STEP_LIMIT
    whole = isoloss.traverse(classifier().problem(), stop=Stop(steps=8), progress=False)
    assert torch.equal(steps.path.points, whole.points)
    assert list(steps) == []  # it has ended


def test_an_iterator_that_is_interrupted_ends() -> None:
    steps = isoloss.walk(classifier().problem(), stop=Stop(steps=8))
    next(steps)
    steps.interrupt("enough")
    assert list(steps) == []
    assert "enough" in steps.path.message


def test_a_path_looked_at_midway_changes_nothing_of_the_walk() -> None:
    record = isoloss.Record(points_every=3, points_at_most=2)
    steps = isoloss.walk(classifier().problem(), stop=Stop(steps=9), record=record)
    for _ in steps:
        steps.path  # noqa: B018
    whole = isoloss.traverse(
        classifier().problem(), stop=Stop(steps=9), record=record, progress=False
    )
    assert steps.path.point_steps == whole.point_steps


def test_what_an_iterator_cannot_use_is_refused_at_once(refuses: Any) -> None:
    with refuses("rtol must be", "got 2.0"):
        isoloss.walk(classifier().problem(), rtol=2.0)


def test_a_path_is_asked_for_after_a_row(refuses: Any) -> None:
    steps = isoloss.walk(classifier().problem())
    with refuses("no row yet", "next(walk)"):
        steps.path  # noqa: B018
    next(steps)
    assert len(steps.path.steps) == 1


# ---------------------------------------------------------------- back in the model


@pytest.mark.parametrize("name", list(kinds()))
def test_every_point_in_the_users_model_has_the_loss_recorded(name: str) -> None:
    kind = kinds()[name]
    problem = Problem(kind.model, kind.loss, kind.data, dtype=F64)
    path = isoloss.traverse(problem, stop=Stop(steps=3), progress=False)
    assert path.steps["regularizer"].iloc[-1] < path.steps["regularizer"].iloc[0]
    model = kinds()[name].model.double()
    for k, step in enumerate(path.point_steps):
        path.load_into(model, k)
        again = Problem(model, kind.loss, kind.data)
        loss = again.loss(again.current()).item()
        assert loss == pytest.approx(path.steps["loss"].iloc[step], rel=1e-12)
        fresh = kinds()[name].model.double()
        strict = not path.frozen
        fresh.load_state_dict(path.state_dict(k), strict=strict)
        assert torch.equal(Problem(fresh, kind.loss, kind.data).current(), path.points[k])


def test_buffers_come_with_a_point() -> None:
    path = walked(with_batch_norm())
    other = with_batch_norm()
    other[1].reset_running_stats()
    assert plain_loss(other) != pytest.approx(path.level, rel=1e-4)
    path.load_into(other)
    assert plain_loss(other) == pytest.approx(path.steps["loss"].iloc[-1], rel=1e-12)
    fresh = with_batch_norm()
    fresh[1].reset_running_stats()
    fresh.load_state_dict(path.state_dict())
    assert plain_loss(fresh) == pytest.approx(path.steps["loss"].iloc[-1], rel=1e-12)


def test_a_model_with_other_buffers_is_refused_and_left_alone(refuses: Any) -> None:
    path = walked(with_batch_norm())
    other = with_batch_norm()
    other.register_buffer("mask", torch.ones(3))
    before = [p.clone() for p in other.parameters()]
    with refuses("buffers"):
        path.load_into(other)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_too_coarse_for_the_level_is_refused_and_left_alone(
    refuses: Any, dtype: torch.dtype
) -> None:
    path, model = walked(with_batch_norm()), with_batch_norm().to(dtype)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    with refuses("'0.weight'", str(dtype), "torch.float64", "model.float() first"):
        path.load_into(model)
    after = model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    path.load_into(model.float())
    assert plain_loss(model.double()) == pytest.approx(path.level, rel=1.1e-3)


def test_a_point_goes_into_an_average_of_models_and_back() -> None:
    kind = with_batch_norm()
    average = torch.optim.swa_utils.AveragedModel(with_batch_norm())
    walked(kind).load_into(average)
    assert plain_loss(average.eval()) == pytest.approx(walked(kind).level, rel=1.1e-3)
    walked(average).load_into(kind)


def test_a_coarse_frozen_layer_is_refused_unless_a_type_is_given(refuses: Any) -> None:
    """As the base of adapters in bfloat16: a model with it has another loss than its copy."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(3, 5).bfloat16().requires_grad_(False)
            self.head = nn.Linear(5, 4)

        def forward(self, x: Any) -> Any:
            return self.head(self.base(x.to(self.base.weight.dtype)).to(self.head.weight.dtype))

    model, data = Adapted(), classifier().data
    with refuses("'base.weight'", "torch.bfloat16", "model.float() first", "dtype=torch.float32"):
        isoloss.Problem(model, "cross_entropy", data)
    problem = isoloss.Problem(model, "cross_entropy", data, dtype=torch.float32)
    path = isoloss.traverse(problem, stop=Stop(steps=1), progress=False)
    with refuses("'base.weight'", "torch.bfloat16", "model.float() first"):
        path.load_into(model)
    path.load_into(model.float())


def test_a_walk_that_never_met_its_level_has_no_point_and_says_why(refuses: Any) -> None:
    problem, stop = classifier().problem(), Stop(evaluations=3)
    path = isoloss.traverse(problem, level=1e-30, stop=stop, progress=False)
    assert path.outcome is Outcome.LEVEL_UNREACHABLE
    hold = {"norm": isoloss.at_most("squared_norm", 1e-9)}
    crowded = isoloss.traverse(problem, hold=hold, stop=stop, progress=False)
    for each, what in ((path, "its level"), (crowded, "all that is held")):
        for give in (each.state_dict, lambda each=each: each.load_into(classifier().model)):
            with refuses(f"no point of the walk met {what}", each.message):
                give()


def test_another_frozen_layer_is_refused_by_name(refuses: Any) -> None:
    model = with_batch_norm(frozen=True)
    path = walked(model)
    path.load_into(model)
    assert plain_loss(model) == pytest.approx(path.steps["loss"].iloc[-1], rel=1e-12)
    with torch.no_grad():
        model[3].weight[0, 0] += 1e-3
    with refuses("frozen parameter '3.weight'"):
        path.load_into(model)
    assert "3.weight" not in path.state_dict()


def test_weights_of_today_with_buffers_of_yesterday_are_refused(refuses: Any) -> None:
    model = with_batch_norm()
    problem = Problem(model, "cross_entropy", (INPUTS, CLASSES))
    model.train()
    model(INPUTS - 1)
    model.eval()
    with refuses("'1.running_mean'", "make the Problem anew"):
        isoloss.traverse(problem, progress=False)
    frozen = with_batch_norm(frozen=True)
    problem = Problem(frozen, "cross_entropy", (INPUTS, CLASSES))
    with torch.no_grad():
        frozen[3].bias += 1
    with refuses("'3.bias'"):
        isoloss.traverse(problem, progress=False)


# ---------------------------------------------------------------- one loss, however it is asked for


class FastPath(nn.Module):
    """An encoder that torch evaluates by another kernel where no gradient is wanted."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.out(self.encoder(x, src_key_padding_mask=padding).mean(1))


def test_loss_without_and_with_gradient_are_one_where_torch_has_two_kernels() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FastPath().eval()
    x = torch.randn(12, 5, 8, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(12, 5, dtype=torch.bool)
    padding[:, 3:] = torch.arange(12)[:, None] % 2 == 0
    data = [((x, padding), torch.arange(12) % 3)]
    problem = Problem(model, "cross_entropy", data)
    theta = problem.current()
    loss, _ = problem.loss_and_grad(theta)
    plain = nn.functional.cross_entropy(model(x, padding), torch.arange(12) % 3).item()
    for other in (problem.loss(theta), problem.example_losses(theta).mean()):
        assert other.item() == pytest.approx(loss.item(), rel=1e-6)
    assert problem.evaluate(theta)[0] == pytest.approx(loss.item(), rel=1e-6)
    assert loss.item() == pytest.approx(plain, rel=1e-5)


CHANGED: dict[str, tuple[Callable[[nn.Sequential], Any], list[str]]] = {
    "another layer": (lambda m: m.__setitem__(1, nn.ReLU()), ["'1'", "a ReLU and was a Tanh"]),
    "a wider one": (
        lambda m: m.__setitem__(0, nn.Linear(3, 6).double()),
        ["'0.weight' of shape (6, 3) where there was '0.weight' of shape (5, 3)"],
    ),
    "one more": (
        lambda m: m.append(nn.Linear(4, 4).double()),
        ["'3.weight' of shape (4, 4) where there was none"],
    ),
    "a frozen one": (
        lambda m: m[0].requires_grad_(False),
        ["'2.weight' of shape (4, 5) where there was '0.weight' of shape (5, 3)"],
    ),
}


@pytest.mark.parametrize(("change", "words"), CHANGED.values(), ids=CHANGED)
def test_a_problem_of_a_model_that_was_changed_is_refused(
    refuses, change: Callable[[nn.Sequential], Any], words: list[str]
) -> None:
    net = classifier()
    problem = net.problem()
    change(net.model)
    with refuses("when the problem was made" if "was a" in words[-1] else "since", *words, "anew"):
        isoloss.traverse(problem, progress=False)


def test_threads_may_share_a_problem() -> None:
    problem = classifier().problem()
    thetas = [problem.current() + 0.1 * k for k in range(4)]
    right = [problem.loss_and_grad(theta)[0].item() for theta in thetas]
    wrong: list[int] = []

    def ask(k: int) -> None:
        for _ in range(200):
            if problem.loss_and_grad(thetas[k])[0].item() != right[k]:
                wrong.append(k)
            if abs(problem.evaluate(thetas[k])[0] - right[k]) > 1e-12:
                wrong.append(k)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["attention", "dense", "tied and frozen"])
@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_a_copied_problem_is_the_same_function(name: str, how: str) -> None:
    kind = kinds()[name]
    problem = Problem(kind.model, kind.loss, kind.data, dtype=F64)
    theta = problem.current()
    problem.loss_and_grad(2 * theta)
    other = copy.deepcopy(problem) if how == "copied" else pickle.loads(pickle.dumps(problem))
    v = normal(problem.size, seed=3)
    for made in (other, problem):
        made.loss(3 * theta)  # leaves the other alone
        loss, grad = made.loss_and_grad(theta)
        assert loss == problem.loss_and_grad(theta)[0]
        assert torch.equal(grad, problem.loss_and_grad(theta)[1])
        assert torch.equal(made.hvp(theta, v), problem.hvp(theta, v))


def test_evaluations_of_a_regularizer_made_of_derivatives_are_counted() -> None:
    problem = classifier().problem()
    stop = Stop(steps=2)
    path = isoloss.traverse(problem, regularizer="gradient_norm", stop=stop, progress=False)
    assert (path.steps["evaluations"] % 4 == 0).all()  # each: L, g again, and a product for two
    plain = isoloss.traverse(problem, stop=stop, progress=False)
    assert plain.steps["evaluations"].iloc[0] == 1


# ---------------------------------------------------------------- by name, whatever is around it


class Prefixed(nn.Module):
    """A model of the user's that holds the one that was walked."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"inner": net})

    def forward(self, x: Tensor) -> Tensor:
        return self.net["inner"](x)


class Halves(nn.Module):
    """Whose first layers alone are wrapped."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        for k, layer in enumerate(net):
            self.add_module(str(k), nn.DataParallel(layer) if k < 2 else layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")  # pyright: ignore[reportReturnType]


AROUND: dict[str, Any] = {
    "nothing": lambda net: net,
    "DataParallel": nn.DataParallel,
    "compiled": compiled,
    "compiled, in parallel": lambda net: nn.DataParallel(compiled(net)),
    "prefixed": Prefixed,
    "prefixed, in parallel": lambda net: nn.DataParallel(Prefixed(net)),
    "in halves": Halves,
}


@pytest.fixture(scope="module")
def walks() -> dict[str, isoloss.Path]:
    frozen = with_batch_norm(frozen=True)
    return {name: walked(AROUND[name](frozen), steps=2) for name in ("nothing", "prefixed")} | {
        name: walked(AROUND[name](frozen), steps=2) for name in ("DataParallel", "in halves")
    }


@pytest.mark.parametrize(
    "around",
    [pytest.param(k, marks=[pytest.mark.slow] * ("compiled" in k)) for k in AROUND],
)
@pytest.mark.parametrize("walk", ["nothing", "prefixed", "DataParallel", "in halves"])
def test_a_point_is_loaded_whatever_is_around_the_model(
    walks: dict[str, isoloss.Path], walk: str, around: str
) -> None:
    path, other = walks[walk], with_batch_norm(frozen=True)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + parameter.requires_grad)
    other[1].reset_running_stats()
    path.load_into(AROUND[around](other))
    assert plain_loss(other) == pytest.approx(path.steps["loss"].iloc[-1], rel=1e-12)


def test_parameters_in_another_order_are_told_by_name() -> None:
    path, other = walked(with_batch_norm(), steps=2), with_batch_norm()
    for layer in (other[0], other[4]):  # as torch.nn.utils.remove_weight_norm leaves it
        weight = layer.weight
        del layer.weight
        layer.weight = weight
    assert list(dict(other.named_parameters())) != list(path.shapes)
    path.load_into(other)
    assert plain_loss(other) == pytest.approx(path.steps["loss"].iloc[-1], rel=1e-12)


def test_another_model_is_refused_with_what_differs_and_left_alone(refuses: Any) -> None:
    path = walked(with_batch_norm(), steps=2)
    wider, longer, shorter = (with_batch_norm() for _ in range(3))
    wider[4] = nn.Linear(6, 5).double()
    longer.append(nn.Linear(3, 3).double())
    del shorter[4]
    for other, words in (
        (wider, ["'4.weight' has there the shape (3, 6), here (5, 6)"]),
        (longer, ["'5.weight' has there the shape none, here (3, 3)"]),
        (shorter, ["'4.weight' has there the shape (3, 6), here none"]),
        (nn.DataParallel(wider), ["'module.4.weight'", "(3, 6), here (5, 6)"]),
        (with_batch_norm(frozen=True), ["'3.weight'", "here none"]),
    ):
        before = [tensor.clone() for tensor in other.state_dict().values()]
        with refuses("trainable parameters are not those of the walk", *words):
            path.load_into(other)
        after = other.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
