"""A report of made-up results, written once."""

from __future__ import annotations

import pytest
from tests.report.made import made_results

from isoloss import open_results
from isoloss.report import report


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """What `report` returned of `made_results`."""
    out = made_results(tmp_path_factory.mktemp("results"))
    return report(open_results(out), "IRIS_FF")
