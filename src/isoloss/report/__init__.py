"""Results as numbers and pictures: tables, figures, and the page that holds them."""

from isoloss.report.chapter import Report, report
from isoloss.report.comparison import comparison_table
from isoloss.report.comparison_figures import comparison_scatter, decay_history
from isoloss.report.components import PCA, pca
from isoloss.report.curves import Band, band, curve, on_level
from isoloss.report.page import write_page
from isoloss.report.runs import markdown, outcome_table, readable, settings_table, walk_table
from isoloss.report.style import save
from isoloss.report.views import explained_variance, pca_views
from isoloss.report.walks import close_up, plot, walk_panels

__all__ = [
    "PCA",
    "Band",
    "Report",
    "band",
    "close_up",
    "comparison_scatter",
    "comparison_table",
    "curve",
    "decay_history",
    "explained_variance",
    "markdown",
    "on_level",
    "outcome_table",
    "pca",
    "pca_views",
    "plot",
    "readable",
    "report",
    "save",
    "settings_table",
    "walk_panels",
    "walk_table",
    "write_page",
]
