"""The one error of this package."""

from __future__ import annotations

from isoloss.errors import IsolossError


class DataError(IsolossError):
    """A data set cannot be had or read; the text is one sentence: what, why, what to do."""
