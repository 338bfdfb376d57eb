"""The default walk: sequential quadratic programming with a model of how the level set bends."""

from isoloss.methods.sqp.sqp import SQP
from isoloss.methods.sqp.state import SQPState

__all__ = ["SQP", "SQPState"]
