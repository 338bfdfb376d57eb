"""Whether a loss is what a walk needs: a function of the parameters, with a right gradient."""

from isoloss.checking.function import (
    check_function,
    check_gradient,
    check_tolerance,
    relative_noise,
)

__all__ = ["check_function", "check_gradient", "check_tolerance", "relative_noise"]
