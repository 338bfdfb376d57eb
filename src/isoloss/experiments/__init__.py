"""The five experiments of the paper: catalog, data sets, networks."""

from isoloss.experiments.catalog import Data, Experiment, get, names

__all__ = ["Data", "Experiment", "get", "names"]
