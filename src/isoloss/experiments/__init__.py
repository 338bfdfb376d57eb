"""The five experiments of the paper: catalogue, data sets, networks."""

from isoloss.experiments.catalogue import Data, Experiment, Start, get, names

__all__ = ["Data", "Experiment", "Start", "get", "names"]
