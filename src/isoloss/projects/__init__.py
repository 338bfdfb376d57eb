"""A user's own model, data and training, given as FILE.py:FUNCTION to the commands."""

from isoloss.projects.loading import load_function
from isoloss.projects.project import Project, is_project, template

__all__ = ["Project", "is_project", "load_function", "template"]
