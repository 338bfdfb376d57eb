"""Regularizers R(theta): what a walk makes small on the level set."""

from isoloss.regularizers.combined import maximize, weighted_sum
from isoloss.regularizers.flatness import GradientNorm, HessianTrace
from isoloss.regularizers.input_gradient import InputGradient
from isoloss.regularizers.names import REGULARIZERS, AnyRegularizer, get_regularizer
from isoloss.regularizers.nuclear_norm import NuclearNorm
from isoloss.regularizers.path_norm import PathNorm
from isoloss.regularizers.regularizer import Regularizer
from isoloss.regularizers.sparsity import L1, GroupLasso
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
