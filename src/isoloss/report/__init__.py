"""Results as numbers and pictures: tables, figures, and the page that holds them."""

from isoloss.report.comparison import comparison_scatter, decay_history
from isoloss.report.components import PCA, pca
from isoloss.report.curves import Band, band, curve, on_level
from isoloss.report.page import write_page
from isoloss.report.pca import explained_variance, pca_views
from isoloss.report.report import Report, report
from isoloss.report.run_tables import outcome_table, settings_table
from isoloss.report.style import save
from isoloss.report.walk import close_up, walk_panels
from isoloss.report.walk_tables import markdown, readable, walk_table

__all__ = [
    "PCA",
    "Band",
    "Report",
    "band",
    "close_up",
    "comparison_scatter",
    "curve",
    "decay_history",
    "explained_variance",
    "markdown",
    "on_level",
    "outcome_table",
    "pca",
    "pca_views",
    "readable",
    "report",
    "save",
    "settings_table",
    "walk_panels",
    "walk_table",
    "write_page",
]
