"""Results as numbers and pictures: tables, figures, and the page that holds them."""

from isoloss.report.chapter import Report, outcome_table, report
from isoloss.report.comparison import comparison_scatter, decay_history
from isoloss.report.intervals import extent_intervals
from isoloss.report.page import save
from isoloss.report.statistics import PCA, pca
from isoloss.report.tables import comparison_table, readable, walk_table
from isoloss.report.views import explained_variance, pca_views
from isoloss.report.walks import close_up, plot, walk_panels

__all__ = [
    "PCA",
    "Report",
    "close_up",
    "comparison_scatter",
    "comparison_table",
    "decay_history",
    "explained_variance",
    "extent_intervals",
    "outcome_table",
    "pca",
    "pca_views",
    "plot",
    "readable",
    "report",
    "save",
    "walk_panels",
    "walk_table",
]
