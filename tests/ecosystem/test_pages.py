"""The pages of the documentation whose code needs other packages work as pasted."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.test_docs import DOCS, WITH_CODE, needed, run

PAGES = [page for page in WITH_CODE if needed(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_code_blocks_work_as_pasted(page: Path, monkeypatch, tmp_path, capsys) -> None:
    for package in needed(page):
        pytest.importorskip(package)
    run(page, monkeypatch, tmp_path, capsys)
