"""Functions from results to numbers: curves, tables, principal components."""

from isoloss.analysis.curves import Band, band, curve, on_level
from isoloss.analysis.pca import PCA, pca
from isoloss.analysis.runs import outcome_table, settings_table
from isoloss.analysis.tables import markdown, readable, walk_table

__all__ = [
    "PCA",
    "Band",
    "band",
    "curve",
    "markdown",
    "on_level",
    "outcome_table",
    "pca",
    "readable",
    "settings_table",
    "walk_table",
]
