"""The code in the documentation works as pasted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from tests.report.made import undrawn

from isoloss.cli import main

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
ECOSYSTEM = re.compile(r"^(?:import|from) (peft|torch_geometric|transformers)\b", re.MULTILINE)
TRACKERS = re.compile(r"\btrackers\.(TensorBoard|MLflow|WandB)\(")


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """Language, text and first line of each block of code; of a file, its name for the language."""
    text = page.read_text(encoding="utf-8")
    return [(m[2] or m[1], m[3], text[: m.start(3)].count("\n")) for m in BLOCK.finditer(text)]


def needed(page: Path) -> set[str]:
    """The packages outside `isoloss[all]` that a page's code imports."""
    text = page.read_text(encoding="utf-8")
    return {*ECOSYSTEM.findall(text), *map(str.lower, TRACKERS.findall(text))}


WITH_CODE = [p for p in sorted(DOCS.rglob("*.md")) if any(b[0] == "python" for b in blocks(p))]
PAGES = [page for page in WITH_CODE if not needed(page)]
"""The others run in `tests/ecosystem`."""


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_code_blocks_work_as_pasted(page: Path, monkeypatch, tmp_path, capsys) -> None:
    run(page, monkeypatch, tmp_path, capsys)
    if page.stem == "tutorial":
        assert (tmp_path / "walk.png").stat().st_size > 10_000
    if page.stem == "gallery":
        shown = re.findall(r"\]\(images/(\w+\.png)\)", page.read_text(encoding="utf-8"))
        assert sorted(shown) == sorted(file.name for file in tmp_path.glob("*.png"))
        assert all(10_000 < (tmp_path / name).stat().st_size < 100_000 for name in shown)


def run(page: Path, monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    """Python blocks of a page run one after another in one namespace, `isoloss` commands too.

    A block with a title is the file of that name.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    with mpl.rc_context({"backend": "agg"}), torch.random.fork_rng():
        for language, text, line in blocks(page):
            if language == "python":
                code = compile("\n" * line + text, str(page), "exec")
                exec(code, names)
            elif language == "sh":
                for command in text.splitlines():
                    command, _, into = command.partition(" > ")
                    program, *arguments = shlex.split(command, comments=True)
                    assert program == "isoloss", f"{page}: {command}"
                    capsys.readouterr()
                    _run(arguments)
                    if into:
                        (tmp_path / into).write_text(capsys.readouterr().out)
            elif language.endswith(".py"):
                (tmp_path / language).write_text(text)


def _run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended, undrawn():
        main(arguments)
    assert not ended.value.code, f"isoloss {shlex.join(arguments)} exited with {ended.value.code}"


def test_the_tutorial_goes_from_a_trained_network_to_a_plot_in_ten_lines() -> None:
    (_, _, _), (_, walk, _), *_ = blocks(DOCS / "tutorial.md")
    lines = [line for line in walk.splitlines() if line.strip()]
    assert len(lines) <= 10
    assert "traverse" in walk
    assert "isoloss.plot(path)" in walk


def test_every_page_is_found_from_the_menu() -> None:
    menu = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    missing = {page for page in pages if page not in menu and not page.startswith("results/")}
    assert not missing, f"add to nav in mkdocs.yml: {', '.join(sorted(missing))}"
