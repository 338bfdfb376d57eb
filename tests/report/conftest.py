"""A report of made-up results, written once."""

from __future__ import annotations

import pytest
from tests.once import once
from tests.report.made import made_results

from isoloss import open_results
from isoloss.report import report


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """What `report` returned of `made_results`."""

    def make(folder):
        return report(open_results(made_results(folder)), "IRIS_FF")

    return once(tmp_path_factory, "reported", make)
