"""Whether a loss is what a walk needs: a function of the parameters, with a right gradient."""

from isoloss.checking.finite import check_start, why_not_finite
from isoloss.checking.function import check_function, check_tolerance, relative_noise
from isoloss.checking.gradient import check_gradient, check_quantity, with_cause
from isoloss.checking.held import check_held
from isoloss.checking.memory import check_memory

__all__ = [
    "check_function",
    "check_gradient",
    "check_held",
    "check_memory",
    "check_quantity",
    "check_start",
    "check_tolerance",
    "relative_noise",
    "why_not_finite",
    "with_cause",
]
