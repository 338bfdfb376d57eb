"""isoloss: walk the level sets of a neural network's training loss."""

from isoloss import experiments, losses
from isoloss._version import __version__
from isoloss.checking.check import Check, check
from isoloss.errors import DerivativeError, InputError, IsolossError
from isoloss.methods import SQP, Paper
from isoloss.outcome import Outcome
from isoloss.path import Path, Record, Stop
from isoloss.problem import Problem
from isoloss.regularizers import (
    L1,
    GradientNorm,
    GroupLasso,
    HessianTrace,
    InputGradient,
    NuclearNorm,
    PathNorm,
    SquaredNorm,
    maximize,
    weighted_sum,
)
from isoloss.store import Checkpoint, Results, ResultsError, open_results
from isoloss.walking import traverse

__all__ = [
    "L1",
    "SQP",
    "Check",
    "Checkpoint",
    "DerivativeError",
    "GradientNorm",
    "GroupLasso",
    "HessianTrace",
    "InputError",
    "InputGradient",
    "IsolossError",
    "NuclearNorm",
    "Outcome",
    "Paper",
    "Path",
    "PathNorm",
    "Problem",
    "Record",
    "Results",
    "ResultsError",
    "SquaredNorm",
    "Stop",
    "__version__",
    "check",
    "experiments",
    "losses",
    "maximize",
    "open_results",
    "traverse",
    "weighted_sum",
]
