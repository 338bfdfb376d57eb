"""isoloss: walk the level sets of a neural network's training loss."""

from isoloss import experiments
from isoloss._version import __version__
from isoloss.errors import InputError, IsolossError
from isoloss.methods import SQP, Paper
from isoloss.outcome import Outcome
from isoloss.path import Path, Record, Stop
from isoloss.problem import Problem
from isoloss.results import Results, ResultsError, open_results
from isoloss.walk import traverse

__all__ = [
    "SQP",
    "InputError",
    "IsolossError",
    "Outcome",
    "Paper",
    "Path",
    "Problem",
    "Record",
    "Results",
    "ResultsError",
    "Stop",
    "__version__",
    "experiments",
    "open_results",
    "traverse",
]
