"""A walk between two steps, who keeps it, and what tells one walk from another."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from isoloss.constraints import Constraint
from isoloss.errors import InputError
from isoloss.evaluation import Ranks
from isoloss.evaluation.shares import fingerprint
from isoloss.flat import digest
from isoloss.losses import OwnTensors
from isoloss.methods import Method, State
from isoloss.methods.sqp.basis import Rows
from isoloss.objective import Objective
from isoloss.path import Record
from isoloss.point import Tolerance
from isoloss.problem import Problem, inside
from isoloss.recorder import Recorded
from isoloss.regularizers import REGULARIZERS
from isoloss.settings import Settings


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a walk continues from."""

    asked: dict[str, Any]  # what determines the walk, as far as it can be compared
    chunk_size: int | None  # `Problem.chunk_size`, which the last bits depend on
    level: float
    state: State  # its step is not recorded yet
    evaluations: int
    recorded: Recorded  # up to the step before
    apart: tuple[int, ...] = ()  # evaluations of all that is held beside the level
    examples: int = 0  # of other problems, in these


@runtime_checkable
class Keeper(Protocol):
    """Keeps snapshots of one walk; `isoloss.Checkpoint` does so in a folder."""

    def load(self, state: type, asked: Mapping[str, Any]) -> Snapshot | None:
        """The last snapshot, its method's state of this class; one of another walk is refused."""
        ...

    @property
    def due(self) -> bool:
        """Whether it is time for the next one; asked at every step."""
        ...

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot."""
        ...


def state_class(method: Method) -> type:
    """The class of a method's states, from what its `init` says that it returns."""
    found = typing.get_type_hints(type(method).init).get("return")
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise InputError(
            f"a walk by {method.name} cannot be checkpointed, since the class of its states is not "
            f"known; annotate {type(method).__name__}.init with the dataclass it returns"
        )
    return found


def exchanged(snapshot: Snapshot, change: Callable[[Any], Any]) -> Snapshot:
    """A snapshot with every tensor and every `Rows` of its state replaced."""
    return dataclasses.replace(snapshot, state=_mapped(snapshot.state, change))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, (Rows, Tensor)):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **{k: _mapped(v, change) for k, v in fields.items()})
    if isinstance(value, dict):
        pairs = cast("dict[Any, Any]", value).items()
        return {key: _mapped(one, change) for key, one in pairs}
    if isinstance(value, (tuple, list)):
        parts = [_mapped(one, change) for one in cast("list[Any]", value)]
        return parts if isinstance(value, list) else tuple(parts)
    return value


def with_whole_rows(snapshot: Snapshot, ranks: Ranks) -> Snapshot:
    """A snapshot for the first rank to keep, with the rows of all ranks on the CPU."""
    if ranks.count == 1:
        return snapshot
    size = len(snapshot.state.point.theta)

    def gathered(value: Any) -> Any:
        if not isinstance(value, Rows):
            return value
        whole = (ranks.whole(row, size).cpu() for row in value.values)
        kept = [row if ranks.number == 0 else row[:0] for row in whole]
        return dataclasses.replace(value, values=torch.stack(kept))

    return exchanged(snapshot, gathered)


def with_own_rows(snapshot: Snapshot, ranks: Ranks, device: torch.device) -> Snapshot:
    """A snapshot that was kept, with this rank's part of the rows."""
    if ranks.count == 1:
        return snapshot

    def cut(value: Any) -> Any:
        if not isinstance(value, Rows):
            return value.to(device)
        parts = [ranks.cut(row).to(device) for row in value.values]
        return dataclasses.replace(value, values=torch.stack(parts))

    return exchanged(snapshot, cut)


def check_agree(
    ranks: Ranks,
    asked: Mapping[str, Any],
    options: Mapping[str, Any],
    probes: Mapping[str, Problem],
) -> None:
    """Insist on the same walk on all ranks, and on the same data of what they do not share."""
    if ranks.count == 1:
        return
    parts = {name: inside(probe) for name, probe in probes.items()}
    own = {k: fingerprint(one.chunks) for k, one in parts.items() if one.ranks.count == 1}
    first, *others = ranks.gather({**asked, **options, "data of probes": own})
    for number, other in enumerate(others, 1):
        apart = differences(first, other, told="{name} is {before!r} there, {now!r} here")
        if apart:
            raise InputError(
                f"rank {number} was given another walk than rank 0 ({'; '.join(apart[:3])}); give "
                f"all ranks the same, but for the examples and callbacks"
            )


def walk_identity(
    problem: Problem,
    theta: Tensor,
    level: float | None,
    regularizer: Mapping[str, Any],
    method: Method,
    tolerance: Tolerance,
    record: Record,
    probes: Mapping[str, Problem],
    hold: Mapping[str, Constraint],
) -> dict[str, Any]:
    """What determines a walk, as far as it can be compared with that of a checkpoint."""
    settings = method.model_dump() if isinstance(method, Settings) else identity(method)
    return {
        "start": digest(theta),
        "parameters": problem.size,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "precision": problem.precision,
        "problem": identity(problem),
        "level": level,
        "regularizer": dict(regularizer),
        "method": {"name": method.name, **settings},
        "rtol": tolerance.rtol,
        "atol": tolerance.atol,
        "record": record.model_dump(),
        "probes": {name: identity(probes[name]) for name in sorted(probes)},
        **({"hold": {name: identity(one) for name, one in hold.items()}} if hold else {}),
    }


def check_continues(state: State, objective: Objective) -> None:
    """Insist that a checkpoint's numbers are those of this problem and this regularizer.

    Data, models and a user's functions cannot be compared, but what they give can.
    """
    point = state.point
    loss = objective.problem.loss(point.theta).item()
    value = objective.regularizer.value_and_grad(point.theta)[0].item()
    # room for another machine's rounding
    near = 1e-3 if objective.problem.dtype == torch.float32 else 1e-8
    held = () if point.held is None else point.held.values
    for what, before, now in (
        ("loss", point.loss, loss),
        (f"regularizer {objective.regularizer.name}", point.regularizer, value),
        *(
            (f"hold[{bound.name!r}]", kept, bound.quantity.value_and_grad(point.theta)[0].item())
            for bound, kept in zip(objective.held, held, strict=True)
        ),
    ):
        if math.isfinite(before) and not math.isclose(before, now, rel_tol=near, abs_tol=near**3):
            raise InputError(
                f"the checkpoint keeps another walk ({what} at the point it has reached was "
                f"{before:.9g}, now {now:.9g}): the data, the model or a function has changed; "
                f"give another folder"
            )


def identity_of_regularizer(given: Any, name: str) -> dict[str, Any]:
    """The name of a regularizer as given to `traverse`, and its settings, down to its parts'."""
    known = REGULARIZERS[given]() if isinstance(given, str) else given
    return {"name": name, **identity(known)}


def identity(value: Any) -> Any:
    """What JSON can tell of a value: two that differ in it are not the same."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Tensor():
            return f"tensor of {tuple(value.shape)}, {digest(value)}"
        case Mapping():  # in order, since it may matter
            pairs = cast("Mapping[object, object]", value).items()
            return [[identity(key), identity(one)] for key, one in pairs]
        case list() | tuple():
            return [identity(one) for one in cast("list[object]", value)]
        case Problem():
            own = inside(value)
            parts: dict[str, Any] = {
                "loss": own.loss,
                "metric": own.metric,
                "examples": value.examples,
            }
            if own.ranks.count > 1:  # of each, so that all have the same to compare
                parts["examples"] = own.ranks.gather(value.examples)
            if own.held is not None:
                parts["held"] = own.held
            return {name: identity(part) for name, part in parts.items()}
        case nn.Module():  # a loss of torch's or the user's own
            options = {k: v for k, v in vars(value).items() if not k.startswith("_")}
            return _object(value, {**options, **value.state_dict()})
        case OwnTensors():
            reduction = getattr(value, "reduction", None)  # the module's own is none by now
            return {**identity(value.module), "reduction": reduction}
        case functools.partial():
            given = identity([value.args, value.keywords])
            return {"function": identity(value.func), "given": given}
        case Settings():
            return _object(value, dict(value))
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return _object(value, fields)
        case _:
            name = getattr(value, "__qualname__", None)
            return {"function": name} if isinstance(name, str) else _object(value, {})


def differences(
    before: Any, now: Any, name: str = "", *, told: str = "{name} was {before!r}, now {now!r}"
) -> list[str]:
    """Where two nested mappings differ, a phrase each: `stop.steps was 5, now 6`."""
    lists = isinstance(before, list) and isinstance(now, list) and len(before) == len(now)
    if lists and any(isinstance(item, (list, Mapping)) for item in before):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        if before.get("name") != now.get("name"):  # another thing has other settings
            before, now = {"name": before.get("name")}, {"name": now.get("name")}
        return [
            text
            for key in {**before, **now}
            for text in differences(
                before.get(key), now.get(key), f"{name}.{key}".lstrip("."), told=told
            )
        ]
    return [] if before == now else [told.format(name=name, before=before, now=now)]


def _object(value: object, fields: Mapping[str, object]) -> dict[str, Any]:
    known = {name: identity(one) for name, one in fields.items()}
    return {"class": type(value).__qualname__, **known}
