"""Functions from results to numbers: curves, tables, principal components."""

from isoloss.analysis.curves import Band, band, on_level
from isoloss.analysis.pca import PCA, pca
from isoloss.analysis.tables import markdown, walk_table

__all__ = ["PCA", "Band", "band", "markdown", "on_level", "pca", "walk_table"]
