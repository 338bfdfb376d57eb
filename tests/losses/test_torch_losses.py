"""torch's own loss objects: the loss of a problem is what they give for the whole data at once."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.problems import F64, generator, normal
from torch import Tensor, nn

from isoloss import Checkpoint, Problem, Stop, check, traverse
from isoloss.objective import Objective

N, CLASSES = 23, 4


def weights(n: int, *, zeros: int = 0) -> Tensor:
    found = torch.rand(n, generator=generator(7)) + 0.1
    found[:zeros] = 0
    return found


def labels(*shape: int, ignored: int | None = None, classes: int = CLASSES) -> Tensor:
    found = torch.randint(classes, shape, generator=generator(5))
    if ignored is not None:
        found[torch.rand(shape, generator=generator(6)) < 0.3] = ignored
    return found


def network(outputs: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs))


def positions() -> nn.Sequential:
    return network(CLASSES * 6).append(nn.Unflatten(1, (CLASSES, 6)))


def probabilities() -> Tensor:
    return torch.softmax(normal(N, CLASSES, seed=3).float(), 1)


def log_network(outputs: int) -> nn.Sequential:
    return network(outputs).append(nn.LogSoftmax(1))


CASES: dict[str, tuple[nn.Module, Callable[[], nn.Module], Tensor]] = {
    "cross entropy": (nn.CrossEntropyLoss(), lambda: network(4), labels(N)),
    "weighted": (nn.CrossEntropyLoss(weight=weights(4)), lambda: network(4), labels(N)),
    "smooth": (nn.CrossEntropyLoss(label_smoothing=0.2), lambda: network(4), labels(N)),
    "smooth and weighted, a class of weight 0": (
        nn.CrossEntropyLoss(weight=weights(4, zeros=1), label_smoothing=0.2, ignore_index=2),
        lambda: network(4),
        labels(N),
    ),
    "ignored": (nn.CrossEntropyLoss(), lambda: network(4), labels(N, ignored=-100)),
    "positions": (nn.CrossEntropyLoss(), positions, labels(N, 6)),
    "positions, ignored": (
        nn.CrossEntropyLoss(weight=weights(4), ignore_index=-1, label_smoothing=0.1),
        positions,
        labels(N, 6, ignored=-1),
    ),
    "probabilities": (
        nn.CrossEntropyLoss(weight=weights(4), label_smoothing=0.1),
        lambda: network(4),
        probabilities(),
    ),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), lambda: network(4), labels(N)),
    "not reduced": (nn.CrossEntropyLoss(reduction="none"), lambda: network(4), labels(N)),
    "nll": (nn.NLLLoss(weight=weights(4), ignore_index=0), lambda: log_network(4), labels(N)),
    "mse": (nn.MSELoss(), lambda: network(3), normal(N, 3, seed=1).float()),
    "mse, summed": (nn.MSELoss(reduction="sum"), lambda: network(3), normal(N, 3, seed=1).float()),
    "l1": (nn.L1Loss(), lambda: network(3), normal(N, 3, seed=1).float()),
    "huber": (nn.HuberLoss(delta=0.3), lambda: network(2), normal(N, 2, seed=1).float()),
    "smooth l1": (nn.SmoothL1Loss(beta=0.3), lambda: network(2), normal(N, 2, seed=1).float()),
    "mse of integers": (nn.MSELoss(), lambda: network(2), labels(N, 2)),
    "binary": (
        nn.BCEWithLogitsLoss(pos_weight=weights(3), weight=2 * weights(3)),
        lambda: network(3),
        labels(N, 3, classes=2),
    ),
    "binary, probabilities": (
        nn.BCELoss(),
        lambda: network(1).append(nn.Sigmoid()),
        torch.rand(N, 1, generator=generator(1)),
    ),
    "divergence": (nn.KLDivLoss(reduction="batchmean"), lambda: log_network(4), probabilities()),
    "divergence, mean": (
        nn.KLDivLoss(reduction="mean"),
        lambda: log_network(4),
        probabilities(),
    ),
    "counts": (nn.PoissonNLLLoss(), lambda: network(2), labels(N, 2).float()),
    "margin": (nn.MultiMarginLoss(weight=weights(4)), lambda: network(4), labels(N)),
    "soft margin": (nn.SoftMarginLoss(), lambda: network(2), 2.0 * labels(N, 2, classes=2) - 1),
    "several labels": (
        nn.MultiLabelSoftMarginLoss(weight=weights(3)),
        lambda: network(3),
        labels(N, 3, classes=2).float(),
    ),
}
of_all = pytest.mark.parametrize("name", CASES)


def plainly(
    loss: nn.Module, model: nn.Module, inputs: Tensor, targets: Tensor, scale: float = 1.0
) -> tuple[float, Tensor]:
    """What the object gives for all outputs at once, and its gradient, in float64."""
    loss, model = copy.deepcopy(loss).double(), copy.deepcopy(model).double()
    if targets.is_floating_point() or isinstance(loss, (nn.MSELoss, nn.BCEWithLogitsLoss)):
        targets = targets.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # KLDivLoss advises batchmean
        value = loss(model(inputs.double()), targets)
        value = value.mean() if value.ndim else value
    grads = torch.autograd.grad(value * scale, list(model.parameters()))
    return value.item(), torch.cat([grad.reshape(-1) for grad in grads])


@of_all
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_the_loss_is_the_objects_own_of_all_data(
    name: str, dtype: torch.dtype, chunk_size: int | None
) -> None:
    given, make, targets = CASES[name]
    model, inputs = make(), normal(N, 3, seed=9).float()
    before = copy.deepcopy(given)
    problem = Problem(model, given, (inputs, targets), dtype=dtype, chunk_size=chunk_size)
    value, grad = problem.loss_and_grad(problem.current())
    expected, expected_grad = plainly(given, model, inputs, targets)
    near = {F64: 1e-12, torch.float32: 3e-6}[dtype]
    assert value.item() == pytest.approx(expected, rel=near)
    assert (grad.double() - expected_grad).norm() <= 10 * near * expected_grad.norm()
    assert problem.loss(problem.current()).item() == pytest.approx(expected, rel=near)
    assert problem.evaluate(problem.current())[0] == pytest.approx(expected, rel=near)
    assert vars(given).keys() == vars(before).keys()
    assert given.reduction == before.reduction  # the user's object is left as it was
    exact = problem.with_dtype(F64)
    assert exact.loss(exact.current()).item() == pytest.approx(expected, rel=1e-12)


def test_batches_of_several_lengths_are_averaged_over_all_that_counts() -> None:
    given = nn.CrossEntropyLoss(weight=weights(4), ignore_index=-1)
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(2)).double()

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, tokens: Tensor) -> Tensor:
            return self.net(tokens).transpose(1, 2)

    tagger = Tagger()
    batches = [
        (torch.randint(9, (5, t), generator=generator(t)), labels(5, t, ignored=-1))
        for t in (2, 7, 4)
    ]
    problem = Problem(tagger, given, batches)
    outputs = torch.cat([tagger(x).transpose(1, 2).flatten(0, 1) for x, _ in batches])
    targets = torch.cat([y.flatten() for _, y in batches])
    expected = copy.deepcopy(given).double()(outputs, targets).item()
    assert problem.loss(problem.current()).item() == pytest.approx(expected, rel=1e-12)


def test_weights_of_examples_come_on_top_of_those_of_classes() -> None:
    given, inputs, targets = nn.CrossEntropyLoss(weight=weights(4)), normal(N, 3, seed=9), labels(N)
    model = network(4).double()
    counts = torch.randint(4, (N,), generator=generator(1))
    problem = Problem(model, given, (inputs, targets), weights=counts.double())
    rows = torch.repeat_interleave(torch.arange(N), counts)
    expected, _ = plainly(given, model, inputs[rows], targets[rows])
    assert problem.loss(problem.current()).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["positions, ignored", "binary", "mse, summed"])
def test_a_walk_holds_what_the_object_gives(name: str) -> None:
    given, make, targets = CASES[name]
    model, inputs = make(), normal(N, 3, seed=9).float()
    problem = Problem(model, given, (inputs, targets))
    path = traverse(problem, stop=Stop(evaluations=25), progress=False)
    assert len(path.points) > 3
    start = plainly(given, model, inputs, targets)[0]
    for k in range(len(path.points)):
        path.load_into(model, k)
        assert plainly(given, model, inputs, targets)[0] == pytest.approx(start, rel=1.01e-3)
    found = check(problem)
    assert found.passed, str(found)


def test_the_metric_of_an_object_is_that_of_its_name_where_every_target_counts() -> None:
    inputs = normal(N, 3, seed=9).float()
    problem = Problem(network(4), nn.CrossEntropyLoss(), (inputs, labels(N)))
    named = Problem(network(4), "cross_entropy", (inputs, labels(N)))
    assert problem.evaluate(problem.current())[1] == named.evaluate(named.current())[1]
    for given, targets in (
        (nn.CrossEntropyLoss(weight=weights(4)), labels(N)),
        (nn.CrossEntropyLoss(), labels(N, ignored=-100)),
    ):
        problem = Problem(network(4), given, (inputs, targets))
        assert math.isnan(problem.evaluate(problem.current())[1])


class Focal(nn.Module):
    """A user's own, with a float32 tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("alpha", weights(4))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logp = outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
        assert self.alpha.dtype == outputs.dtype
        return -self.alpha[targets] * (1 - logp.exp()).square() * logp


def test_a_module_of_the_users_own_follows_the_problems_type() -> None:
    own, inputs, targets = Focal(), normal(N, 3, seed=9), labels(N)
    model = network(4)
    problem = Problem(model, own, (inputs, targets), dtype=F64)
    outputs = copy.deepcopy(model).double()(inputs)
    expected = copy.deepcopy(own).double()(outputs, targets).mean().item()
    assert problem.loss(problem.current()).item() == pytest.approx(expected, rel=1e-14)
    assert own.alpha.dtype == torch.float32
    single = problem.with_dtype(torch.float32)
    assert single.loss(single.current()).item() == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_knows_the_objects_options(refuses, tmp_path) -> None:
    inputs, targets = normal(N, 3, seed=9).float(), labels(N)

    def walk(given: nn.Module) -> Any:
        problem = Problem(network(4), given, (inputs, targets))
        stop, keeper = Stop(evaluations=5), Checkpoint(tmp_path / "walk")
        return traverse(problem, stop=stop, checkpoint=keeper, progress=False)

    first = walk(nn.CrossEntropyLoss(weight=weights(4)))
    assert torch.equal(walk(nn.CrossEntropyLoss(weight=weights(4))).points, first.points)
    with refuses("label_smoothing was 0.0, now 0.1"):
        walk(nn.CrossEntropyLoss(weight=weights(4), label_smoothing=0.1))
    with refuses("reduction was 'mean', now 'sum'"):
        walk(nn.CrossEntropyLoss(weight=weights(4), reduction="sum"))
    with refuses("problem.loss", "weight"):
        walk(nn.CrossEntropyLoss(weight=2 * weights(4)))


REFUSED: dict[str, tuple[nn.Module, Tensor, list[str]]] = {
    "shape": (nn.MSELoss(), torch.zeros(N), ["MSELoss", "one shape", "(23, 4)", "(23,)"]),
    "no class": (nn.CrossEntropyLoss(), labels(N) + 3, ["no class", "4 columns"]),
    "weights of examples": (
        nn.BCEWithLogitsLoss(weight=torch.ones(N, 1)),
        torch.zeros(N, 4),
        ["weight=...", "(23, 1)", "Problem(weights=...)"],
    ),
    "type": (
        nn.CrossEntropyLoss(),
        labels(N).int(),
        ["CrossEntropyLoss", "int32", "convert the targets"],
    ),
    "all ignored": (
        nn.CrossEntropyLoss(ignore_index=1),
        torch.ones(N).long(),
        ["no target counts"],
    ),
    "three arguments": (nn.TripletMarginLoss(), labels(N), ["loss", "outputs, targets"]),
    "lengths": (nn.CTCLoss(), labels(N), ["loss", "outputs, targets"]),
}


@pytest.mark.parametrize(("given", "targets", "words"), REFUSED.values(), ids=REFUSED)
def test_what_an_object_cannot_take_is_refused(
    refuses, given: nn.Module, targets: Tensor, words: list[str]
) -> None:
    with refuses(*words):
        problem = Problem(network(4), given, (normal(N, 3, seed=9).float(), targets))
        problem.loss(problem.current())


def test_a_regularizer_of_the_loss_is_of_what_the_object_gives() -> None:
    given, inputs, targets = nn.MSELoss(reduction="sum"), normal(N, 3, seed=9), normal(N, 1, seed=1)
    model = nn.Linear(3, 1).double()
    problem = Problem(model, given, (inputs, targets), chunk_size=5)
    objective = Objective(problem, "hessian_trace")
    expected = 2 * (inputs.square().sum() + N)  # of sum (w x + b - y)^2
    found = objective.evaluate(problem.current()).regularizer
    assert found == pytest.approx(expected.item(), rel=1e-12)
