"""What public functions are given, held against their annotations."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from isoloss.errors import MOST, InputError, kind, shown, unknown

AnyTensor = Tensor.__base__  # complex, sparse, without numbers

P = ParamSpec("P")
R = TypeVar("R")

WORDS = {
    "model": "a torch.nn.Module or a function of (dict of parameters, inputs)",
    "loss": "a name such as 'mse', a loss object, or a function of (outputs, targets) or (model, "
    "batch)",
    "metric": "a name such as 'mse', or a function of (outputs, targets) or (model, batch)",
    "method": "'sqp', 'paper', or an object such as isoloss.SQP(memory=20)",
    "regularizer": "a name such as 'squared_norm', an object such as isoloss.L1(), or a function "
    "of the parameters by name",
    "quantity": "a Problem, a name such as 'squared_norm', an object such as isoloss.L1(), or a "
    "function of the parameters by name",
    "hold": "a dict of constraints by name, as hold={'validation': isoloss.at_most(validation, "
    "0.3)}",
    "Constraint": "what isoloss.at_most(...) or isoloss.equal(...) gives",
    "walks": "an isoloss.Path, a list or a dict of them, or an isoloss.Front",
    "fronts": "an isoloss.Front or a list of them",
    "mask": "a dict of boolean tensors by the names of parameters",
    "folder": "a path such as 'results/walk'",
    "probes": "a dict of problems by name, as probes={'test': test_problem}",
    "callback": "a function of the row just recorded, or a list of these",
    "Problem": "an isoloss.Problem, made of a model, a loss and data",
    "Stop": "an object such as isoloss.Stop(steps=500)",
    "Record": "an object such as isoloss.Record(points_every=10)",
    "Keeper": "an isoloss.Checkpoint(folder)",
    "Path": "an isoloss.Path",
    "Results": "what isoloss.open_results(folder) returns",
    "Method": "an object such as isoloss.SQP(memory=20)",
    "PCA": "what isoloss.report.pca returns",
    "TrainingState": "a TrainingState, as Training.init returns it",
    "Module": "a torch.nn.Module",
    "DataFrame": "a pandas.DataFrame",
    "ndarray": "an array of numbers",
    "Tensor": "a dense tensor of real numbers",
    "TensorBase": "a tensor",
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "PathLike": "a pathlib.Path",
    "NoneType": "None",
}
"""What an argument of several types must be, by its name; what one of one type must be, by that."""

TEXTS = {"kind", "method", "quantity", "place", "status"}
"""Columns of tables that hold no numbers."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse, in a sentence, arguments that are not of the kinds that the annotations name."""
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:
        return _hints(inspect.get_annotations(function), inspect.unwrap(function).__globals__)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            _check_names(function, signature, kwargs)
            return function(*args, **kwargs)  # Python's own error names the function
        for name, value in given.items():
            several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
            for one in value if several else (value,):
                _check(name, one, hints().get(name, Any))
        return function(*args, **kwargs)

    return call


def _check_names(
    function: Callable[..., Any], signature: inspect.Signature, given: Iterable[str]
) -> None:
    """Refuse, in a sentence, arguments that a function does not have."""
    own = function.__qualname__.removesuffix(".__init__")
    taken = [name for name in signature.parameters if name != "self"]
    for name in given:
        if name not in taken:
            raise unknown(f"argument of {own}", name, taken)


def check_fields(made: Any) -> None:
    """Refuse, in a sentence, a dataclass whose fields are not of the kinds that they name."""
    kinds = _kinds(type(made))
    for field in dataclasses.fields(made):
        _check(field.name, getattr(made, field.name), kinds[field.name])


def check_columns(name: str, table: Any, *columns: str) -> None:
    """Refuse, in a sentence, a table that lacks columns, or numbers in them."""
    for column in columns:
        held = list(table.columns).count(column)
        if held != 1:
            raise InputError(f"{name} must have one column {column!r}, got {held} of it")
        if table[column].dtype.kind not in "iufb" and column not in TEXTS:
            raise InputError(
                f"the column {column!r} of {name} must hold numbers, got {table[column].dtype}"
            )


def real(name: str, value: Any, wanted: str = "a number") -> float:
    """A number, or a tensor of one, as Python's; infinity where it is too large for that."""
    single = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    if not _is(value, float) and not (single and not value.is_meta):
        raise InputError(f"{name} must be {wanted}, got {_given(value)}")
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def whole(name: str, value: Any, least: int = 0, most: int = MOST) -> int:
    """A whole number within bounds."""
    if not _is(value, int) or not least <= value <= most:
        large = most < MOST or (_is(value, int) and value > most)
        bounds = f"from {least} to {'2^63 - 1' if most == MOST else most}"
        bounds = bounds if large else f"of at least {least}"
        raise InputError(f"{name} must be a whole number {bounds}, got {shown(value)}")
    return int(value)


def _hints(annotations: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """What annotations mean; of one that only type checkers know, anything."""
    found: dict[str, Any] = {}
    for name, text in annotations.items():
        later = {"pd": importlib.import_module("pandas")} if "pd." in text else {}
        try:
            holder = types.SimpleNamespace(__annotations__={name: text})
            found |= typing.get_type_hints(holder, {**names}, later)
        except NameError:
            found[name] = Any
    return found


@functools.cache
def _kinds(made: type) -> dict[str, Any]:
    return _hints(inspect.get_annotations(made), vars(sys.modules[made.__module__]))


def _check(name: str, value: Any, hint: Any) -> None:
    for where, part, wanted in _misfits(name, value, hint):
        raise InputError(f"{where} must be {_words(where, wanted)}, got {_given(part)}")


def _given(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, str | bytes | Real):
        return f"{kind(value)}, {shown(value)}"
    if not isinstance(value, Tensor):
        return kind(value)
    layout = "" if value.layout == torch.strided else f" that is {value.layout}"
    return f"a tensor of {value.dtype} on {value.device}{layout}"


def _misfits(name: str, value: Any, hint: Any) -> Iterable[tuple[str, Any, Any]]:
    """The parts of a value that are not of the kind they should be: name, part, kind."""
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        found = [list(_misfits(name, value, one)) for one in inner]
        if all(found):
            deeper = [each for each in found if each[0][0] != name]
            yield deeper[0][0] if deeper else (name, value, hint)
    elif not _is(value, origin):
        yield name, value, hint
    elif isinstance(value, Mapping) and len(inner) == 2:
        for key, one in cast("Mapping[Any, Any]", value).items():
            yield from _misfits(f"a key of {name}", key, inner[0])
            # of named ones, which a model may have as buffers, any is taken
            of_values = AnyTensor if inner[1] is Tensor else inner[1]
            yield from _misfits(f"{name}[{shown(key)}]", one, of_values)
    elif isinstance(value, Sequence) and inner:
        every = origin is not tuple or ... in inner
        usual = every and issubclass(type(inner[0]), type)  # looked at all at once
        if usual and {*map(type, cast("Sequence[Any]", value))} <= {inner[0]}:
            return
        kinds = [inner[0]] * len(cast("Sequence[Any]", value)) if every else inner
        if len(kinds) != len(cast("Sequence[Any]", value)):
            yield name, value, hint
        else:
            for k, (one, each) in enumerate(zip(cast("Sequence[Any]", value), kinds, strict=True)):
                yield from _misfits(f"{name}[{k}]", one, each)


def _is(value: Any, wanted: Any) -> bool:
    if wanted is int or wanted is float:
        return isinstance(value, Integral if wanted is int else Real) and not _is(value, bool)
    if wanted is bool:
        return isinstance(value, bool | np.bool_)
    if wanted is Tensor and isinstance(value, Tensor):
        return value.layout == torch.strided and not value.is_complex() and not value.is_meta
    if wanted is np.ndarray and isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    if wanted in (Sequence, Iterable) and isinstance(value, str | bytes | bytearray):
        return False
    try:
        if wanted is Iterable:
            iter(value)  # which a tensor of shape () says that it can
            return True
        return isinstance(value, wanted)
    except TypeError:  # Any, type variables, protocols that cannot be looked for
        return wanted is not Iterable


def _words(name: str, hint: Any) -> str:
    """What a kind is called, for use within a sentence."""
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if name in WORDS:
            return WORDS[name]
        return " or ".join(dict.fromkeys(_words("", one) for one in inner))
    if origin is Callable:
        return "a function"
    said = getattr(origin, "__name__", str(origin))
    if inner and issubclass(origin, Mapping):
        return f"a dict of {_words('', inner[1])} by {_words('', inner[0])}"
    if inner and issubclass(origin, Iterable):
        return f"a {'tuple' if origin is tuple else 'list'} of {_words('', inner[0])} each"
    return WORDS.get(said, said)
