"""Regularizers R(theta): what a walk makes small on the level set."""

from isoloss.regularizers.derivatives import GradientNorm, HessianTrace, InputGradient
from isoloss.regularizers.path_norm import PathNorm
from isoloss.regularizers.registry import (
    REGULARIZERS,
    AnyRegularizer,
    get_regularizer,
    maximize,
    weighted_sum,
)
from isoloss.regularizers.regularizer import Regularizer
from isoloss.regularizers.sparsity import L1, GroupLasso, NuclearNorm
from isoloss.regularizers.squared_norm import SquaredNorm

__all__ = [
    "L1",
    "REGULARIZERS",
    "AnyRegularizer",
    "GradientNorm",
    "GroupLasso",
    "HessianTrace",
    "InputGradient",
    "NuclearNorm",
    "PathNorm",
    "Regularizer",
    "SquaredNorm",
    "get_regularizer",
    "maximize",
    "weighted_sum",
]
