"""Several processes walk the path that one walks alone, to rounding, and end together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.problems import F64, generator, normal, uninformed
from tests.processes import on_ranks
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import isoloss
from isoloss import Checkpoint, Problem, Record, Stop, traverse, walk
from isoloss.evaluation.group import GroupRanks, _backends

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="os.kill, file stores")

EXAMPLES, CLASSES = 37, 4
SHORT = Stop(steps=4, kkt_residual=0)


def network(dtype: torch.dtype = F64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, CLASSES)
        return nn.Sequential(*layers).to(dtype)


def examples(dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    targets = torch.randint(0, CLASSES, (EXAMPLES,), generator=generator(1))
    return normal(EXAMPLES, 5, seed=2).to(dtype), targets


def share(rank: int, ranks: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Unequal shares: all of 37 but every tenth go to the first rank where there are two."""
    rows = torch.arange(EXAMPLES) % (10 if ranks == 2 else 4)
    own = {2: rows.clamp(max=1) == 1 - rank, 3: rows.clamp(max=2) == rank}[ranks]
    return tuple(tensor[own] for tensor in tensors)


def weights() -> Tensor:
    return torch.rand(EXAMPLES, generator=generator(3), dtype=F64) * (torch.arange(EXAMPLES) != 5)


LOSSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "mean": ("cross_entropy", {}),
    "weights": ("cross_entropy", {"weights": weights()}),
    "classes": (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 0.5, 3]), ignore_index=3),
        {"metric": "accuracy"},
    ),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), {}),
    "chunks": ("cross_entropy", {"chunk_size": 4}),
}


def problem(rank: int, ranks: int, name: str = "mean", dtype: torch.dtype = F64) -> Problem:
    """The problem of one rank; of (0, 1), that of all examples, with what several know."""
    loss, options = LOSSES[name]
    data = examples(dtype)
    if ranks > 1:
        data = share(rank, ranks, *data)
        options = {**options, "group": dist.group.WORLD}
        if "weights" in options:
            options["weights"] = share(rank, ranks, options["weights"])[0]
    made = Problem(network(dtype), loss, data, **options)
    return made if ranks > 1 else uninformed(made)


def summary(path: isoloss.Path) -> dict[str, Any]:
    """What a path holds, to be sent between processes."""
    rows = path.steps.drop(columns=["seconds", "kind"])
    told = {"outcome": path.outcome.value, "message": path.message, "steps": path.point_steps}
    told["seconds"] = path.steps["seconds"].tolist()
    return {"rows": rows.to_numpy(), "points": path.points.numpy(), **told}


def same(one: Any, two: Any) -> bool:
    numbers = (np.array_equal(one[k], two[k], equal_nan=True) for k in ("rows", "points"))
    return all(numbers) and all(one[k] == two[k] for k in ("outcome", "message", "steps"))


# ---------------------------------------------------------------- the same path


def _walk_all(rank: int, ranks: int, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        test = {"test": problem(rank, ranks, name)}
        made = problem(rank, ranks, name)
        found[name] = summary(traverse(made, stop=SHORT, probes=test, progress=False))
    coarse = problem(rank, ranks, dtype=torch.float32)
    # in which what each sum rounds off has grown beyond the tolerance two steps later
    found["float32"] = summary(traverse(coarse, stop=Stop(steps=2), progress=False))
    level = 0.4 * problem(rank, ranks).loss(problem(rank, ranks).current()).item()
    for name, options in (("another level", {"level": level}), ("paper", {"method": "paper"})):
        path = traverse(problem(rank, ranks), stop=SHORT, progress=False, **options)
        found[name] = summary(path)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "names"), [(2, ("mean", "chunks")), (3, tuple(LOSSES)[1:4])])
def test_the_path_is_that_of_one_process(ranks: int, names: Any, tmp_path: Path) -> None:
    alone = _walk_all(0, 1, names)
    first, *others = on_ranks(ranks, _walk_all, names, folder=tmp_path)
    for name, expected in alone.items():
        found = first[name]
        rtol, atol = (2e-3, 1e-4) if name == "float32" else (1e-9, 1e-10)
        np.testing.assert_allclose(found["rows"], expected["rows"], rtol=rtol, atol=atol)
        np.testing.assert_allclose(found["points"], expected["points"], rtol=rtol, atol=atol)
        assert all(same(found, other[name]) for other in others), name
    if ranks == 2:
        again = on_ranks(ranks, _walk_all, names, folder=tmp_path)[0]
        assert all(same(first[name], again[name]) for name in alone)


def _values(rank: int, ranks: int) -> list[Any]:
    made = problem(rank, ranks, "weights")
    theta, v = made.current(), normal(made.size, seed=5)
    loss, grad = made.loss_and_grad(theta)
    outputs = isoloss.Outputs(examples()[0][:3], lambda logits: logits.softmax(1)[:, 0].sum())
    trace = isoloss.regularizers.HessianTrace(probes=3)
    curved = trace, isoloss.GradientNorm(), "input_gradient", outputs
    several = [isoloss.regularizers.get_regularizer(one, made) for one in curved]
    terms = [tensor.numpy() for one in several for tensor in one.value_and_grad(theta)]
    other = made.with_dtype(torch.float32)
    return [
        loss.item(), made.loss(theta).item(), grad.numpy(), made.hvp(theta, v).numpy(),
        *made.evaluate(theta), *terms, other.loss(other.current()).item(),
    ]  # fmt: skip


@pytest.mark.slow
def test_loss_derivatives_and_metric_are_those_of_all_examples(tmp_path: Path) -> None:
    """Against plain torch on the concatenated examples, and regularizers against one process."""
    found = on_ranks(3, _values, folder=tmp_path)
    model, (inputs, targets), w = network(), examples(), weights()

    def loss(*parameters: Tensor) -> Tensor:
        named = dict(zip(dict(model.named_parameters()), parameters, strict=True))
        outputs = torch.func.functional_call(model, named, (inputs,))
        each = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return each @ w / w.sum()

    at = tuple(parameter.detach() for parameter in model.parameters())
    grad = torch.cat([g.flatten() for g in torch.autograd.functional.vjp(loss, at)[1]])
    v = normal(len(grad), seed=5).split([p.numel() for p in at])
    directions = tuple(a.view_as(b) for a, b in zip(v, at, strict=True))
    hvp = torch.autograd.functional.vhp(loss, at, directions)[1]
    right = ((model(inputs).argmax(1) == targets).double() @ w / w.sum()).item()
    value = loss(*at).item()
    expected = [value, value, grad, torch.cat([p.flatten() for p in hvp]), value, right]
    for mine, one in zip(found[0], expected, strict=False):
        np.testing.assert_allclose(mine, one, rtol=1e-10, atol=1e-13)
    for mine, one in zip(found[0], _values(0, 1), strict=True):
        np.testing.assert_allclose(mine, one, rtol=1e-6, atol=1e-12)
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


def _rows(rank: int, ranks: int) -> tuple[int, int]:
    steps = walk(problem(rank, ranks), stop=SHORT)
    *_, last = steps
    return steps._state.model.basis.rows.values.shape[1], last["step"]


@pytest.mark.slow
def test_each_rank_holds_its_part_of_the_basis(tmp_path: Path) -> None:
    size = sum(parameter.numel() for parameter in network().parameters())
    found = on_ranks(3, _rows, folder=tmp_path)
    assert [columns for columns, _ in found] == [26, 26, size - 52]
    assert {steps for _, steps in found} == {4}


# ---------------------------------------------------------------- all end together


def _told_to_end(rank: int, ranks: int) -> list[Any]:
    """Ends asked for on one rank alone, each walk's steps and path."""

    def at(step: int, *, only: int) -> Any:
        return lambda row: rank == only and row["step"] == step

    def press(row: dict[str, Any]) -> None:
        if rank == 1 and row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def slow(row: dict[str, Any]) -> None:
        time.sleep(0.3 * (rank == 0))

    made = problem(rank, ranks)
    return [
        summary(traverse(made, progress=False, **one))
        for one in (
            {"callback": at(2, only=1)},
            {"stop": Stop(when=at(2, only=1))},
            {"callback": press},
            {"stop": Stop(seconds=1.0), "callback": slow},
        )
    ]  # fmt: skip


@pytest.mark.slow
def test_ends_asked_for_on_one_rank_are_those_of_all(tmp_path: Path) -> None:
    first, second = on_ranks(2, _told_to_end, folder=tmp_path)
    assert all(same(*both) for both in zip(first, second, strict=True))
    assert [len(one["rows"]) for one in first[:3]] == [3, 3, 3]
    assert [one["seconds"] for one in first] == [one["seconds"] for one in second]  # of one clock
    words = ("callback returned True", "Stop(when=...) returned True", "Ctrl-C")
    assert all(word in one["message"] for word, one in zip(words, first, strict=False))
    assert [one["outcome"] for one in first] == ["interrupted"] * 3 + ["time_limit"]


def _fails(rank: int, ranks: int, how: str) -> Any:
    data = share(rank, ranks, *examples())
    options: dict[str, Any] = {"group": dist.group.WORLD}
    walked: dict[str, Any] = {"stop": SHORT, "progress": False}
    model, loss, calls = network(), "cross_entropy", 0

    def fails_late(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 30 and rank == 1:
            raise ZeroDivisionError("no more of this")
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def wrong_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
        right = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return right + (outputs.square().sum(1).detach() if rank == 1 else 0)

    def infinite(outputs: Tensor, targets: Tensor) -> Tensor:
        right = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return right + torch.where(
            torch.arange(len(right)) == 2, torch.inf if rank == 1 else 0.0, 0.0
        )

    match how:
        case "the loss":
            loss = fails_late
        case "the data":
            data[0][0, 0] = torch.nan if rank == 1 else 0.0
        case "infinite data":
            data[0][0, 0] = torch.inf if rank == 1 else 0.0
            model = nn.Sequential(nn.Identity(), nn.Linear(5, CLASSES).double())
            nn.init.ones_(model[1].weight)
            nn.init.ones_(model[1].bias)
        case "an infinite loss":
            loss = infinite
        case "the callback":
            walked["callback"] = lambda row: 1 // (row["step"] != 2 or rank != 1)
        case "a setting":
            walked["rtol"] = 1e-3 if rank == 0 else 1e-2
        case "the start":
            walked["start"] = torch.ones(76, dtype=F64) * (1 + rank)
        case "the weights":
            with torch.no_grad():
                model[2].bias[1] += rank
        case "a buffer":
            model.register_buffer("mean", torch.tensor(float(rank)))
        case "no shares":
            data = examples()
        case "a probe":
            test = tuple(tensor[:4] for tensor in data)  # of each rank others, as many
            walked["probes"] = {"test": Problem(model, loss, test)}
        case "the regularizer":
            walked["regularizer"] = lambda parameters: (
                sum(p.square().sum() for p in parameters.values()) * (1 + 1e-15 * rank)
            )
        case "the checkpoint":
            walked["checkpoint"] = Checkpoint("here") if rank == 0 else None
        case "one number":
            return Problem(model, lambda model, batch: model(batch[0]).mean(), [data], **options)
        case "the gradient":
            loss = wrong_gradient
        case "the sampler":
            data = DataLoader(TensorDataset(*examples()), 8, sampler=_sampler(ranks, rank))
        case "a sampler of others":
            data = DataLoader(TensorDataset(*examples()), 8, sampler=_sampler(5, rank))
    made = Problem(model, loss, data, **options)
    return summary(traverse(made, **walked))


def _sampler(ranks: int, rank: int, **options: Any) -> DistributedSampler[Any]:
    return DistributedSampler(TensorDataset(*examples()), ranks, rank, **options)


SENTENCES = {
    "the loss": ("RankError: rank 1 of 2 failed (ZeroDivisionError: no more of this)",),
    "the data": ("InputError: on rank 1: inputs hold 1 NaN", "example 0", "fill them in"),
    "infinite data": ("InputError: the loss at the start is", "in example 0 of rank 1"),
    "an infinite loss": (
        "InputError",
        "the loss of example 2 of rank 1 is inf",
    ),
    "the callback": ("RankError: rank 1 of 2 failed (ZeroDivisionError",),
    "a setting": ("InputError: rank 1", "rtol is 0.001 there, 0.01 here"),
    "the start": ("InputError: rank 1", "start is"),
    "the weights": ("InputError", "the same weights", "'2.bias'", "rank 1", "broadcast"),
    "a buffer": ("InputError", "'mean'", "rank 1"),
    "no shares": ("InputError: ranks 0 and 1 hold the same examples", "[rank::ranks]"),
    "a probe": ("InputError: rank 1", "data of probes.test is"),
    "the regularizer": ("RankError: rank 1 of 2 no longer does what rank 0 does",),
    "the checkpoint": ("InputError: rank 1", "checkpoint is True there, False here"),
    "one number": ("InputError: the loss gave one number", "a loss per example"),
    "the gradient": ("InputError: on rank 1: the gradient of the loss is off by",),
    "the sampler": ("InputError: the data's sampler repeats 1 of the examples", "Subset("),
    "a sampler of others": ("InputError", "share 0 of 5 on rank 0 of 2"),
}
"""What is said, on every rank; of an error not isoloss's own, on the others."""


def _fail_in_turn(rank: int, ranks: int) -> list[str]:
    found: list[str] = []
    for how in SENTENCES:
        try:
            _fails(rank, ranks, how)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        else:
            found.append("nothing")
    return found


@pytest.mark.slow
def test_what_fails_or_differs_on_one_rank_ends_all_in_a_sentence(tmp_path: Path) -> None:
    """One after another in the same processes: after an error all are together again."""
    first, second = on_ranks(2, _fail_in_turn, folder=tmp_path)
    for how, one, two in zip(SENTENCES, first, second, strict=True):
        assert all(word in one for word in SENTENCES[how]), (how, one)
        assert re.fullmatch(r"\w+: \S[^\n]{10,400}", one), one
        assert one == two or how in ("the loss", "the callback"), (how, two)
    assert second[list(SENTENCES).index("the loss")] == "ZeroDivisionError: no more of this"


# ---------------------------------------------------------------- killed, and continued


def _checkpointed(rank: int, ranks: int, folder: Path, killed_at: int, steps: int = 3) -> Any:
    def kill(row: dict[str, Any]) -> None:
        if rank == 1 and row["step"] == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    made = problem(rank, ranks, "weights")
    path = traverse(
        made,
        level=0.6 * made.loss(made.current()).item(),  # killed on the way there
        method=isoloss.SQP(memory=16),
        stop=Stop(steps=steps, kkt_residual=0),
        record=Record(points_at_most=3),
        checkpoint=Checkpoint(folder, every=0),
        callback=kill,
        progress=False,
    )
    return summary(path)


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_walk_continues_to_the_bit(tmp_path: Path) -> None:
    folder, whole = tmp_path / "kept", tmp_path / "whole"
    began = time.monotonic()
    found = on_ranks(2, _checkpointed, folder, 3, folder=tmp_path)
    assert time.monotonic() - began < 60
    assert found[1] is None
    assert found[0].startswith("RankError: another process of the group has ended")
    assert "continues from its checkpoint" in found[0]
    refused = on_ranks(3, _checkpointed, folder, -1, folder=tmp_path)
    assert all("keeps another walk (problem.examples was [" in text for text in refused)
    continued = on_ranks(2, _checkpointed, folder, -1, folder=tmp_path)
    expected = on_ranks(2, _checkpointed, whole, -1, folder=tmp_path)
    assert same(continued[0], expected[0])
    assert same(continued[0], continued[1])


def _hangs(rank: int, ranks: int) -> str:
    if rank == 1:
        time.sleep(6)
        return "woke up"
    return str(problem(rank, ranks).size)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_in_time(tmp_path: Path) -> None:
    first, second = on_ranks(2, _hangs, folder=tmp_path, answer=4)
    assert first.startswith("RankError: another process of the group has ended or did not answer")
    assert second == "woke up"


@pytest.mark.slow
def test_the_script_of_the_documentation_runs_under_torchrun(tmp_path: Path) -> None:
    page = Path(isoloss.__file__).parents[2] / "docs" / "how-to" / "cluster.md"
    if not page.is_file():
        pytest.skip("the documentation is not here")
    found = re.search(r'title="ranks.py"\n(.*?)^```$', page.read_text("utf-8"), re.M | re.S)
    assert found is not None
    (tmp_path / "ranks.py").write_text(found[1], "utf-8")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*run, "ranks.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Path(sqp, 10 steps") == 1
    assert len(isoloss.Path.load(tmp_path / "walk").steps) == 11


# ---------------------------------------------------------------- loaders and wrappers


def _wrapped(rank: int, ranks: int) -> list[Any]:
    """The whole problem in three forms, as 36 examples divide."""
    inputs, targets = (tensor[:36] for tensor in examples())
    data = TensorDataset(inputs, targets)
    sampled = DataLoader(data, 5, sampler=DistributedSampler(data, ranks, rank))
    own = DataLoader(Subset(data, range(rank, 36, ranks)), 5)
    forms = (sampled, own, (inputs[rank::ranks], targets[rank::ranks]))
    found: list[Any] = []
    for model, one in zip(
        (DistributedDataParallel(network()), network(), network()), forms, strict=True
    ):
        made = Problem(model, "cross_entropy", one, group=dist.group.WORLD)
        path = traverse(made, stop=SHORT, progress=False)
        path.load_into(model)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert torch.equal(weights, path.points[-1])
        found.append(summary(path))
    return found


@pytest.mark.slow
def test_samplers_loaders_and_wrapped_models(tmp_path: Path) -> None:
    inputs, targets = (tensor[:36] for tensor in examples())
    whole = Problem(network(), "cross_entropy", (inputs, targets))
    expected = summary(traverse(uninformed(whole), stop=SHORT, progress=False))
    first, second = on_ranks(2, _wrapped, folder=tmp_path)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_allclose(one["rows"], expected["rows"], rtol=1e-9, atol=1e-10)
        assert same(one, two)


def _of(**options: Any) -> float:
    made = Problem(network(), "cross_entropy", examples(), **options)
    return made.loss(made.current()).item()


def _check(rank: int, ranks: int) -> tuple[bool, str]:
    made = problem(rank, ranks)
    with pytest.raises(isoloss.InputError, match="make it in each process"):
        __import__("copy").deepcopy(made)
    found = isoloss.check(made)
    one, world = dist.new_group([0]), dist.group.WORLD
    if rank == 0:  # a group of one is one process
        assert _of(group=one) == _of()
    else:
        with pytest.raises(isoloss.InputError, match="no member of the group"):
            _of(group=one)
    dist.barrier()
    dist.destroy_process_group()
    with pytest.raises(isoloss.InputError, match="not initialized, or was destroyed"):
        _of(group=world)
    assert "37 examples in 2 shares" in str(found)
    return found.passed, str(found)


@pytest.mark.slow
def test_check_passes_on_all_ranks(tmp_path: Path) -> None:
    for passed, text in on_ranks(2, _check, folder=tmp_path):
        assert passed, text


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (None, ("group is None", "init_process_group")),
        ("world", ("group must be a process group", "got a str")),
        (torch.ones(2), ("group must be a process group", "got a Tensor")),
    ],
)
def test_a_group_that_is_none_is_refused(refuses, group: Any, words: tuple[str, ...]) -> None:
    with refuses(*words):
        Problem(network(), "cross_entropy", examples(), group=group)


def test_a_model_whose_parameters_are_sharded_is_refused(refuses) -> None:
    FullyShardedDataParallel = type("FullyShardedDataParallel", (nn.Sequential,), {})
    with refuses("sharded over processes (FSDP, tensor parallelism)", "gathered"):
        Problem(FullyShardedDataParallel(network()), "cross_entropy", examples())


def test_vectors_travel_where_the_backend_can_take_them(refuses) -> None:
    """Without a GPU: by what torch says of a group."""
    ranks = GroupRanks.__new__(GroupRanks)
    gpu, cpu = torch.device("cuda", 1), torch.device("cpu")
    for config, device, wire in (
        ("cpu:gloo,cuda:gloo", gpu, cpu),
        ("cpu:gloo,cuda:nccl", gpu, gpu),
        ("cpu:gloo,cuda:nccl", cpu, cpu),
    ):
        ranks._backends, ranks._here, ranks._wire = _backends(config), cpu, cpu
        ranks.carry(device)
        assert ranks._wire == wire
    ranks._backends, ranks._here = _backends("cuda:nccl"), gpu
    with refuses("backend is nccl on cuda", "the problem is on 'cpu'", "device='cuda'"):
        ranks.carry(cpu)


def test_a_share_without_a_group_is_refused(refuses) -> None:
    data = DataLoader(TensorDataset(*examples()), 8, sampler=_sampler(2, 0, drop_last=True))
    with refuses("one share of 2", "Problem(group=torch.distributed.group.WORLD)"):
        Problem(network(), "cross_entropy", data)
