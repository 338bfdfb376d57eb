"""Functions from numbers to pictures and the report."""

from isoloss.figures.report import Report, report
from isoloss.figures.style import save
from isoloss.figures.walk import walk_panels

__all__ = ["Report", "report", "save", "walk_panels"]
