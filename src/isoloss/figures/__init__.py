"""Functions from numbers to pictures and the report."""

from isoloss.figures.comparison import comparison_scatter, decay_history
from isoloss.figures.page import write_page
from isoloss.figures.pca import explained_variance, pca_views
from isoloss.figures.report import Report, report
from isoloss.figures.style import save
from isoloss.figures.walk import close_up, walk_panels

__all__ = [
    "Report",
    "close_up",
    "comparison_scatter",
    "decay_history",
    "explained_variance",
    "pca_views",
    "report",
    "save",
    "walk_panels",
    "write_page",
]
