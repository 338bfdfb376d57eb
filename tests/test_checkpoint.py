"""A walk that was interrupted continues with the bits of one that never was."""

from __future__ import annotations

import enum
import io
import math
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.problems import vector_problem
from torch import Tensor

from isoloss import (
    L1,
    SQP,
    Checkpoint,
    Outcome,
    Paper,
    Path,
    Problem,
    Record,
    ResultsError,
    SquaredNorm,
    Stop,
    __version__,
    traverse,
    weighted_sum,
)
from isoloss.methods.paper import PaperState
from isoloss.objective import Objective
from isoloss.point import Tolerance
from isoloss.regularizers import Regularizer
from isoloss.snapshot import Snapshot
from isoloss.store import generations as generations_module
from isoloss.store.checkpoint import TrainingCheckpoint
from isoloss.store.generations import Generations
from isoloss.training import Adam, TrainingState

N = 24


def bowl(theta: Tensor) -> Tensor:
    """Smooth, positive and curved enough that a walk of some dozen steps has corrections."""
    scales = torch.linspace(0.5, 3, N, dtype=theta.dtype)
    return (scales * theta.square()).sum() + 0.1 * torch.sin(3 * theta).square().sum() + 0.05


class Quartic:
    """A regularizer of unknown curvature, so that its Hessian is learned too."""

    name = "quartic"

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta.pow(4).sum() + theta.square().sum(), 4 * theta.pow(3) + 2 * theta


class Mode(enum.Enum):
    ODD = "odd"
    EVEN = "even"


@dataclass(frozen=True)
class Parts:
    """What a state may be made of, each of which the last bits of the next step depend on."""

    transposed: NDArray[np.float64]  # in Fortran's order
    base: Tensor
    view: Tensor  # a transposed part of base
    factor: np.float32
    mode: Mode
    past: list[tuple[float, dict[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class OwnState:
    inner: PaperState
    parts: Parts
    again: Parts  # the same object

    point = property(lambda self: self.inner.point)
    kind = property(lambda self: self.inner.kind)
    step_length = property(lambda self: self.inner.step_length)
    on_level = property(lambda self: self.inner.on_level)
    ending = property(lambda self: self.inner.ending)


class Own:
    """The paper's method with a predictor step that depends on everything in its state."""

    name, stride, takes_all_steps = "own", 1, True

    def kept_tolerance(self, tolerance: Tolerance) -> Tolerance:
        return Paper().kept_tolerance(tolerance)

    def init(
        self, objective: Objective, theta: Tensor, level: float | None, tolerance: Tolerance
    ) -> OwnState:
        generator = np.random.default_rng(0)
        base = torch.from_numpy(generator.normal(size=(40, 30))).to(theta.dtype)
        parts = Parts(
            np.asfortranarray(generator.normal(size=(31, 31))),
            base,
            base[3:33, 2:29].t(),
            np.float32(0.3),
            Mode.ODD,
            [],
        )
        return OwnState(Paper().init(objective, theta, level, tolerance), parts, parts)

    def step(self, objective: Objective, state: OwnState) -> OwnState:
        old = state.parts
        assert state.again is old
        assert old.transposed.flags.f_contiguous
        assert not old.transposed.flags.c_contiguous
        assert old.view.untyped_storage().data_ptr() == old.base.untyped_storage().data_ptr()
        assert type(old.factor) is np.float32
        base = old.base * 1.0
        base[0, 0] = float((old.view @ old.view.t()).sum())
        matrix = old.transposed @ old.transposed.T @ old.transposed
        parts = Parts(
            np.asfortranarray(matrix / np.abs(matrix).max()),
            base / base.abs().max(),
            old.view,
            np.float32(old.factor * np.float32(0.99)),
            Mode.EVEN if old.mode is Mode.ODD else Mode.ODD,
            [*old.past[-2:], (float(matrix.sum()), {"base": base})],
        )
        parts = replace(parts, view=parts.base[3:33, 2:29].t())
        length = 0.01 + 0.001 * math.tanh(float(matrix.sum()) + float(base.sum()))
        length *= float(parts.factor) * (1.1 if parts.mode is Mode.EVEN else 1.0)
        return OwnState(Paper(largest_step=length).step(objective, state.inner), parts, parts)


METHODS: dict[str, dict[str, Any]] = {
    "paper": {"method": "paper", "stop": Stop(steps=90)},
    "own": {"method": Own(), "stop": Stop(steps=25)},
    "sqp": {"method": "sqp", "stop": Stop(steps=40, kkt_residual=1e-12)},
    "sqp, learned": {
        "method": "sqp", "stop": Stop(steps=40, kkt_residual=1e-12), "regularizer": Quartic()
    },
    "sqp, other level": {
        "method": "sqp", "stop": Stop(steps=20, kkt_residual=1e-12), "level": 0.06
    },
}  # fmt: skip


def walk(dtype: torch.dtype = torch.float64, **changes: Any) -> Path:
    start = torch.linspace(-1, 1.5, N, dtype=dtype)
    problem = vector_problem(bowl, start)
    record = Record(points_at_most=10, probes_every=3)
    probes = {"test": vector_problem(lambda theta: bowl(theta).square(), start)}
    return traverse(problem, **{"record": record, "probes": probes, "progress": False, **changes})


def same(one: Path, other: Path) -> bool:
    rows = [path.steps.drop(columns="seconds") for path in (one, other)]
    return (
        rows[0].equals(rows[1])
        and torch.equal(one.points, other.points)
        and one.point_steps == other.point_steps
        and (one.outcome, one.message, one.level) == (other.outcome, other.message, other.level)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("paper", torch.float64), ("own", torch.float32), ("sqp", torch.float32),
     ("sqp", torch.float64), ("sqp, learned", torch.float32), ("sqp, other level", torch.float64)],
)  # fmt: skip
def test_a_walk_resumed_at_every_step_ends_as_one_never_stopped(
    name: str, dtype: torch.dtype, tmp_path: FilePath
) -> None:
    stop = Stop(steps=40 if "sqp" in name else 90, evaluations=58, kkt_residual=1e-12)
    settings = {**METHODS[name], "dtype": dtype, "stop": stop}
    whole = walk(**settings)
    for step in range(len(whole.steps)):
        part = walk(
            **settings,
            checkpoint=Checkpoint(
                tmp_path / "kept", step % 2 * 1e9
            ),  # at every step, or at its end
            callback=lambda row, step=step: row["step"] >= step,
        )
        assert len(part.steps) == step + 1
    checkpoint = Checkpoint(tmp_path / "kept")
    assert same(walk(**settings, checkpoint=checkpoint), whole)
    assert 15 < checkpoint.progress + 1 <= len(whole.steps)


def test_ctrl_c_in_the_middle_of_anything_loses_no_bit(tmp_path: FilePath) -> None:
    whole = walk(**METHODS["sqp"])
    calls, limit = 0, 20

    def interrupting(theta: Tensor) -> Tensor:
        nonlocal calls, limit
        calls += 1
        if calls == limit:
            limit = calls + 13
            raise KeyboardInterrupt
        return bowl(theta)

    start = torch.linspace(-1, 1.5, N, dtype=torch.float64)
    problem = vector_problem(bowl, start)
    probe = vector_problem(lambda theta: interrupting(theta).square(), start)
    outcomes: list[Outcome] = []
    while not outcomes or outcomes[-1] is Outcome.INTERRUPTED:
        path = traverse(
            problem if len(outcomes) % 2 else vector_problem(interrupting, start),
            **METHODS["sqp"],
            record=Record(points_at_most=10, probes_every=3),
            probes={"test": probe},
            check=False,  # its evaluations would be the ones interrupted
            progress=False,
            checkpoint=Checkpoint(tmp_path / "kept"),
        )
        outcomes.append(path.outcome)
    assert outcomes.count(Outcome.INTERRUPTED) >= 2
    assert same(path, whole)


def test_an_ended_walk_is_not_walked_again_and_goes_on_when_more_is_asked(
    tmp_path: FilePath,
) -> None:
    settings = {"method": "paper", "checkpoint": Checkpoint(tmp_path / "kept")}
    short = walk(**settings, stop=Stop(steps=30))

    def never(row: object) -> None:
        raise AssertionError

    again = walk(
        **settings, stop=Stop(steps=30), callback=lambda row: row["step"] < 30 and never(row)
    )
    assert same(again, short)
    longer = walk(**settings, stop=Stop(steps=90))
    assert same(longer, walk(**METHODS["paper"]))


def strength(theta: Mapping[str, Tensor], by: float = 1.0) -> Tensor:
    return by * theta["theta"].square().sum()


def other(theta: Mapping[str, Tensor]) -> Tensor:
    return strength(theta)


AROUND = SquaredNorm(center=torch.zeros(N, dtype=torch.float64))
CHANGED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"regularizer": "l1"}, {"regularizer": L1(smoothing=0.1)},
     "regularizer.smoothing was 0.01, now 0.1"),
    ({"regularizer": weighted_sum((1.0, "squared_norm"), (0.1, L1()))},
     {"regularizer": weighted_sum((1.0, "squared_norm"), (0.1, L1(smoothing=0.1)))},
     "regularizer.parts.1.1.smoothing was 0.01, now 0.1"),
    ({"regularizer": AROUND},
     {"regularizer": SquaredNorm(center=torch.ones(N, dtype=torch.float64))},
     "regularizer.center was 'tensor of (24,), "),
    ({"regularizer": SquaredNorm(weights={"th*": 2.0, "*": 1.0})},
     {"regularizer": SquaredNorm(weights={"*": 1.0, "th*": 2.0})},
     "regularizer.weights.0 was ['th*', 2.0], now ['*', 1.0]"),
    ({"regularizer": strength}, {"regularizer": other},
     "regularizer.name was 'strength', now 'other'"),
    ({"regularizer": partial(strength, by=1.0)}, {"regularizer": partial(strength, by=2.0)},
     "regularizer.given.1.0 was ['by', 1.0], now ['by', 2.0]"),
    ({"method": SQP(memory=20)}, {"method": SQP(memory=30)}, "method.memory was 20, now 30"),
    ({"method": "paper"}, {"method": Paper(tolerance=1e-6)},
     "method.tolerance was 1e-05, now 1e-06"),
    ({}, {"method": "sqp"}, "method.name was 'paper', now 'sqp'"),
    ({}, {"rtol": 1e-2}, "rtol was 0.001, now 0.01"),
    ({"method": SQP()}, {"method": SQP(), "atol": 1e-3}, "atol was None, now 0.001"),
    ({}, {"level": 9.0}, "level was None, now 9.0"),
    ({}, {"record": Record(points_every=7)}, "record.points_every was 1, now 7"),
    ({}, {"start": torch.ones(N, dtype=torch.float64)}, "start was"),
    ({}, {"dtype": torch.float32}, "dtype was 'float64', now 'float32'"),
    ({}, {"examples": 2}, "problem.examples was 1, now 2"),
    ({}, {"probed": 2}, "probes.other.examples was 1, now 2"),
]  # fmt: skip


def set_out(
    folder: FilePath,
    *,
    examples: int = 1,
    probed: int = 1,
    dtype: torch.dtype = torch.float64,
    loss: Any = bowl,
    **changes: Any,
) -> None:
    """Begin a walk, or continue it for two steps."""
    start = torch.linspace(-1, 1.5, N, dtype=torch.float64)

    def problem(count: int) -> Problem:
        return Problem(
            lambda parameters, _: loss(parameters["theta"]).expand(count),
            lambda outputs, _: outputs,
            (torch.zeros(count), torch.zeros(count)),
            parameters={"theta": start},
            dtype=dtype,
        )

    steps = 0

    def enough(row: object) -> bool:
        nonlocal steps
        steps += 1
        return steps > 2

    probes = {"test": problem(1), "other": problem(probed)}
    settings = {"method": "paper", "probes": probes, "progress": False, "callback": enough}
    traverse(problem(examples), **{**settings, **changes}, checkpoint=Checkpoint(folder, 0.0))


@pytest.mark.parametrize(("before", "now", "words"), CHANGED)
def test_a_changed_setting_of_anything_is_refused_and_an_equal_one_is_not(
    before: dict[str, Any], now: dict[str, Any], words: str, tmp_path: FilePath, refuses: Any
) -> None:
    set_out(tmp_path, **before)
    with refuses(words, "give another folder"):
        set_out(tmp_path, **now)
    if before.get("regularizer") == "l1":
        before = {"regularizer": L1()}  # the object of that name is the same
    set_out(tmp_path, **before)


def test_what_a_function_gives_is_compared_where_its_name_is_the_same(
    tmp_path: FilePath, refuses: Any
) -> None:
    def times(factor: float) -> Any:
        def scaled(parameters: Mapping[str, Tensor]) -> Tensor:
            return factor * parameters["theta"].square().sum()

        return scaled

    set_out(tmp_path, regularizer=times(1.0))
    with refuses("regularizer scaled at the point it has reached was", "give another folder"):
        set_out(tmp_path, regularizer=times(1.001))
    with refuses("loss at the point it has reached was", "the data, the model"):
        set_out(tmp_path, regularizer=times(1.0), loss=lambda theta: 1.001 * bowl(theta))
    set_out(tmp_path, regularizer=times(1.0))


def test_bad_arguments_are_refused_and_home_is_expanded(
    tmp_path: FilePath, refuses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for every in (-1.0, float("nan"), None, "30"):
        with refuses("every must be a number of seconds, at least 0", repr(every)):
            Checkpoint(tmp_path, every)  # pyright: ignore
    for folder in (None, 7, ""):
        with refuses("folder must be a path such as", repr(folder)):
            Checkpoint(folder)  # pyright: ignore
    (tmp_path / "file").touch()
    with refuses("got the file"):
        Checkpoint(tmp_path / "file")
    monkeypatch.setenv("HOME", str(tmp_path))
    walk(checkpoint=Checkpoint("~/kept"), callback=lambda row: row["step"] > 0)
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == ["a", "b", "points.bin"]


def in_a_checkpoint(folder: FilePath, evil: object) -> None:
    """Put a payload of somebody else's into a checkpoint, with checksums that are right."""
    generations = Generations(folder, folder.parent)
    found = generations.load()
    assert found is not None
    content = io.BytesIO()
    torch.save(evil, content)
    for _ in range(2):
        generations.save(found.about, content.getvalue(), {})


class Evil:
    def __reduce__(self) -> Any:
        return (FilePath.touch, (FilePath("executed"),))


class Sly:
    """Reaches beyond a class that it may name."""

    def __reduce__(self) -> Any:
        return (getattr, (PaperState, "__doc__"))


SLY = Snapshot(Sly(), None, 0.0, None, 0, None)  # pyright: ignore


@pytest.mark.parametrize("evil", [Evil(), {"state": [Evil()]}, SLY, Quartic(), {}])
def test_a_checkpoint_that_asks_for_other_classes_is_refused_and_runs_no_code(
    evil: object, tmp_path: FilePath, refuses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint(tmp_path / "kept", 0.0)
    walk(method="paper", checkpoint=checkpoint, callback=lambda row: row["step"] > 2)
    in_a_checkpoint(tmp_path / "kept", evil)
    with refuses("kept holds a checkpoint that", "--restart", error=ResultsError):
        walk(method="paper", checkpoint=Checkpoint(tmp_path / "kept"))
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "quarantine").exists()


def test_members_of_enums_are_read_however_python_pickles_them(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # as in 3.11.0 to 3.11.3
        enum.Enum, "__reduce_ex__", lambda self, _: (getattr, (type(self), self.name))
    )
    own = METHODS["own"]
    walk(**own, checkpoint=Checkpoint(tmp_path), callback=lambda row: row["step"] > 9)
    assert same(walk(**own, checkpoint=Checkpoint(tmp_path)), walk(**own))


def damaged(content: bytes, name: str) -> list[bytes | None]:
    """A file gone, empty, cut, longer, and with a byte flipped here and there."""
    places = [*range(0, len(content), max(1, len(content) // 12)), len(content) - 1]
    flips = [content[:k] + bytes([content[k] ^ 8]) + content[k + 1 :] for k in places]
    longer = [] if name == "points.bin" else [content + b"x"]  # there it is room to be written to
    return [None, b"", content[: len(content) // 2], content[:-1], *longer, *flips]


@pytest.mark.parametrize("name", ["a", "b", "points.bin"])
def test_any_damage_is_named_and_kept_and_the_walk_ends_with_the_same_bits(
    name: str, tmp_path: FilePath
) -> None:
    settings = {**METHODS["sqp"], "stop": Stop(steps=6, kkt_residual=1e-12)}
    whole = walk(**settings)
    walk(
        **settings,
        checkpoint=Checkpoint(tmp_path / "kept", 0.0),
        callback=lambda row: row["step"] > 4,
    )
    for k, content in enumerate(damaged((tmp_path / "kept" / name).read_bytes(), name)):
        folder = tmp_path / str(k)
        shutil.copytree(tmp_path / "kept", folder / "kept")
        if content is None:
            (folder / "kept" / name).unlink()
        else:
            (folder / "kept" / name).write_bytes(content)
        checkpoint = Checkpoint(folder / "kept", 0.0)
        path = walk(**settings, checkpoint=checkpoint)
        assert same(path, whole)
        assert any(f"kept/{name} " in sentence for sentence in checkpoint.damage), (k, content)
        if content is not None:
            assert any(file.name.startswith(name) for file in (folder / "quarantine").iterdir())
        if name != "points.bin":
            assert checkpoint.progress >= 3  # from the generation before, at worst
        again = Checkpoint(folder / "kept")
        assert same(walk(**settings, checkpoint=again), whole)
        assert again.damage == []


def test_points_are_written_once_and_the_room_of_those_let_go_is_used_again(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    real = generations_module.write_blocks

    def count(file: FilePath, blocks: Mapping[int, bytes]) -> None:
        written.extend(len(block) for block in blocks.values())
        real(file, blocks)

    monkeypatch.setattr(generations_module, "write_blocks", count)
    path = walk(**METHODS["paper"], checkpoint=Checkpoint(tmp_path / "kept", 0.0))
    assert set(written) == {N * 8}
    assert len(path.point_steps) <= 10
    assert len(written) <= int((path.steps["level_error"].abs() < 1e-3).sum())
    assert (tmp_path / "kept" / "points.bin").stat().st_size <= 13 * N * 8


def test_a_state_that_cannot_be_kept_is_refused_in_one_sentence(
    tmp_path: FilePath, refuses: Any
) -> None:
    class Mute(Own):
        name = "mute"

        def init(self, *arguments: Any):
            raise AssertionError

    with refuses("mute", "annotate Mute.init"):
        walk(method=Mute(), checkpoint=Checkpoint(tmp_path))

    class Holds(Own):
        def init(self, *arguments: Any) -> OwnState:
            state = super().init(*arguments)
            past: Any = [Quartic()]
            return replace(state, parts=replace(state.parts, past=past))

    with refuses("cannot be kept in a checkpoint (it holds a", "Quartic"):
        walk(method=Holds(), checkpoint=Checkpoint(tmp_path, 0.0))

    @dataclass(frozen=True)
    class Local(OwnState):
        pass

    class Locally(Own):
        def init(self, *arguments: Any) -> Local:
            state = super().init(*arguments)
            return Local(state.inner, state.parts, state.again)

    Locally.init.__annotations__["return"] = Local
    with refuses("the state of the walk cannot be kept in a checkpoint", "dataclasses of a module"):
        walk(method=Locally(), checkpoint=Checkpoint(tmp_path / "local", 0.0))


def test_a_checkpoint_of_a_version_with_other_states_says_so(
    tmp_path: FilePath, refuses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk(**METHODS["own"], checkpoint=Checkpoint(tmp_path), callback=lambda row: True)
    fields = dict(Parts.__dataclass_fields__)
    fields.pop("mode")
    monkeypatch.setattr(Parts, "__dataclass_fields__", fields)
    with refuses(f"kept by isoloss {__version__}", "Parts had other fields", error=ResultsError):
        walk(**METHODS["own"], checkpoint=Checkpoint(tmp_path))


def test_whatever_loads_and_saves_can_keep_a_walk() -> None:
    class InMemory:
        due = True
        kept: Any = None

        def load(self, state: type, asked: Mapping[str, Any]) -> Any:
            return self.kept

        def save(self, snapshot: Any) -> None:
            self.kept = snapshot

    keeper = InMemory()
    walk(**METHODS["paper"], checkpoint=keeper, callback=lambda row: row["step"] > 40)
    assert same(walk(**METHODS["paper"], checkpoint=keeper), walk(**METHODS["paper"]))


_: Regularizer = Quartic()


@pytest.mark.slow
def test_several_threads_keep_their_states_at_the_same_time(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = torch.serialization.get_unsafe_globals_in_checkpoint

    def slowly(content: Any) -> list[str]:
        time.sleep(0.1)
        return look(content)

    monkeypatch.setattr(torch.serialization, "get_unsafe_globals_in_checkpoint", slowly)

    def keep(k: int) -> int:
        time.sleep(0.05 * k)
        kept = TrainingCheckpoint(tmp_path / str(k), tmp_path, 0.0)
        assert kept.load(TrainingState) is None
        kept.save(TrainingState(Adam.at(torch.full((2,), float(k))), epoch=k))
        found = kept.load(TrainingState)
        assert found is not None
        return found.epoch

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(keep, range(3))) == [0, 1, 2]
