"""Functions from results to numbers: curves, tables."""

from isoloss.analysis.curves import Band, band, on_level
from isoloss.analysis.tables import markdown, walk_table

__all__ = ["Band", "band", "markdown", "on_level", "walk_table"]
