"""What tells one walk from another, as JSON can hold it: checkpoints are compared by it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from isoloss.flat import digest
from isoloss.problem import Problem, inside
from isoloss.regularizers import REGULARIZERS
from isoloss.settings import Settings


def identity_of_regularizer(given: Any, name: str) -> dict[str, Any]:
    """What is known of a regularizer.

    Args:
        given: As given to `traverse`.
        name: Under which it is recorded.

    Returns:
        Its name and its settings, down to those of its parts; of a function the qualified name, of
        an object of a class of the user's that of the class.
    """
    known = REGULARIZERS[given]() if isinstance(given, str) else given
    return {"name": name, **identity(known)}


def identity(value: Any) -> Any:
    """What can be known of a value: two that differ in it are not the same.

    Args:
        value: Anything.

    Returns:
        Numbers and strings as they are; of tensors a digest; of settings and dataclasses the class
        and the fields, of problems the losses and the number of examples; of functions and other
        objects the qualified name of the function or class.
    """
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
            return {
                "loss": identity(inside(value).loss),
                "metric": identity(inside(value).metric),
                "examples": value.examples,
            }
        case functools.partial():
            return {
                "function": identity(value.func),
                "given": identity([value.args, value.keywords]),
            }
        case Settings():
            fields = {name: getattr(value, name) for name in type(value).model_fields}
            return _object(value, fields)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return _object(value, fields)
        case _:
            name = getattr(value, "__qualname__", None)
            return {"function": name} if isinstance(name, str) else _object(value, {})


def _object(value: object, fields: Mapping[str, object]) -> dict[str, Any]:
    known = {name: identity(one) for name, one in fields.items()}
    return {"class": type(value).__qualname__, **known}
