"""Whether a loss is what a walk needs: a function of the parameters, with a right gradient."""

from isoloss.checking.function import check_function, check_tolerance, relative_noise
from isoloss.checking.gradient import check_gradient, with_cause

__all__ = ["check_function", "check_gradient", "check_tolerance", "relative_noise", "with_cause"]
