"""How a walk steps: one file per method, all with the same `init` and `step`."""

from __future__ import annotations

from isoloss.errors import InputError, kind, unknown
from isoloss.methods.method import Method, State
from isoloss.methods.paper import Paper
from isoloss.methods.sqp import SQP

METHODS: dict[str, type[Paper] | type[SQP]] = {"sqp": SQP, "paper": Paper}


def get_method(method: str | Method) -> Method:
    """The method of that name with its default settings, or the object itself.

    Args:
        method: `"sqp"`, `"paper"`, or an object such as `isoloss.Paper(corrector_step=1e-4)`.

    Returns:
        The method.

    Raises:
        InputError: There is no method of that name, or it is something else.
    """
    if isinstance(method, type):
        name = method.__name__
        raise InputError(f"method must be an object, got the class {name}; give {name}()")
    if not isinstance(method, (str, Method)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"method must be 'sqp', 'paper', or an object such as isoloss.SQP(memory=20), got "
            f"{kind(method)}"
        )
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return METHODS[method]()


__all__ = ["METHODS", "SQP", "Method", "Paper", "State", "get_method"]
