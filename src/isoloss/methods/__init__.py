"""How a walk steps: one file per method, all with the same `init` and `step` and explicit state."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from isoloss.arguments import checked
from isoloss.errors import InputError, unknown
from isoloss.methods.paper import Paper
from isoloss.methods.sqp import SQP
from isoloss.objective import Objective
from isoloss.outcome import Ending
from isoloss.point import Point, Tolerance

METHODS: dict[str, type[Paper] | type[SQP]] = {"sqp": SQP, "paper": Paper}

__all__ = ["METHODS", "SQP", "Method", "Paper", "State", "Tolerance", "get_method"]


class State(Protocol):
    """Where a walk is; each method's own state has these fields, and what else it needs."""

    @property
    def point(self) -> Point:
        """The current point."""
        ...

    @property
    def kind(self) -> str:
        """What the last step was: start, predict, correct, sqp."""
        ...

    @property
    def step_length(self) -> float:
        """Length of the last step; 0 at the start."""
        ...

    @property
    def on_level(self) -> bool:
        """Whether the point meets the tolerance, so that it may be recorded and be the last."""
        ...

    @property
    def ending(self) -> Ending | None:
        """Why the method can go no further; the point is then the one before."""
        ...


@runtime_checkable
class Method(Protocol):
    """A way to step along a level set; `step` takes only states that its own `init` began.

    An attribute `holds` that is True says that it holds more than a level: what the objective's
    `held` lists, and the level as an upper bound where its `upper` says so.
    """

    name: ClassVar[str]
    """The name shown in tables and figures."""

    stride: ClassVar[int]
    """Points between two that are worth keeping: 1 where every step is a long one."""

    takes_all_steps: ClassVar[bool]
    """Whether a walk usually ends at `Stop.steps` rather than by convergence."""

    def kept_tolerance(self, tolerance: Tolerance) -> Tolerance:
        """The tolerance of the level that this method keeps.

        Args:
            tolerance: What the user asked of `traverse`.

        Returns:
            The same, or the method's own.

        Raises:
            InputError: It cannot hold a loss to that.
        """
        ...

    def init(
        self, objective: Objective, theta: Tensor, level: float | None, tolerance: Tolerance
    ) -> State:
        """Evaluate the start.

        Args:
            objective: Evaluates points.
            theta: The start, shape (n,).
            level: The loss to hold; None holds the start's.
            tolerance: Of the level, as the user asked.

        Returns:
            The state at the start.
        """
        ...

    def step(self, objective: Objective, state: Any) -> State:
        """Go one step; the state given is not changed.

        Args:
            objective: Evaluates points.
            state: Where the walk is.

        Returns:
            The state after the step, or the same point with an ending.
        """
        ...


@checked
def get_method(method: str | Method) -> Method:
    """The method of that name with its default settings, or the object itself."""
    if isinstance(method, type):
        name = method.__name__
        raise InputError(f"method must be an object, got the class {name}; give {name}()")
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return METHODS[method]()
