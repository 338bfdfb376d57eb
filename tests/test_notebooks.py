"""The notebooks run from start to end on quick results, and make some where there is no folder."""

from __future__ import annotations

import warnings
from pathlib import Path

import nbformat
import pytest

from isoloss.cli import main

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the notebook client's own imports
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = ("walk", "weight_decay", "pca")
QUICK = (
    ("traverse", "--runs", "2", "--set", "steps=25"),
    ("traverse", "--runs", "1", "--method", "paper", "--set", "steps=120"),
    ("decay", "--runs", "2", "--penalties", "0,1e-3", "--epochs", "2"),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    for command, *options in QUICK:
        with pytest.raises(SystemExit) as end:
            main([command, "IRIS_FF", *options, "--out", str(out)])
        assert not end.value.code
    return out


def executed(name, results, alone=False):
    """A notebook as it is once all its cells have run on results, or on quick ones it makes."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    if alone:
        (cell,) = (cell for cell in notebook.cells if "subprocess" in cell.source)
        cell.source = cell.source.replace('"--out"', '"--runs", "2", "--set", "steps=9", "--out"')
    (parameters,) = (
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    parameters.source = f'EXPERIMENT = "IRIS_FF"\nRESULTS = {str(results)!r}'
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return notebook


def outputs(notebook, kind):
    return [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == kind
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pictures"), [("walk", 3), ("weight_decay", 2), ("pca", 3)])
def test_a_notebook_runs_and_shows_its_figures(name, pictures, request, tmp_path):
    alone = name == "pca"  # makes its results
    folder = tmp_path / "new" if alone else request.getfixturevalue("results")
    notebook = executed(name, folder, alone)
    shown = outputs(notebook, "display_data")
    assert len(shown) == pictures
    assert all("image/png" in output.data for output in shown)
    said = "".join(output.text for output in outputs(notebook, "stream") if output.name == "stdout")
    expected = {
        "walk": "Path(",
        "weight_decay": "penalty 0.001: 2 runs",
        "pca": "scaled, components 1 to 3",
    }
    assert expected[name] in said


@pytest.mark.slow
def test_a_notebook_without_results_tells_the_command(tmp_path):
    with pytest.raises(CellExecutionError, match="isoloss traverse IRIS_FF --out"):
        executed("walk", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_bring_isoloss_where_it_is_missing_and_nothing_that_is_there(name):
    """As on Colab, whose torch stays: pip is told neither to upgrade nor to install it."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    setup = [cell for cell in notebook.cells if cell.cell_type == "code"][1].source.splitlines()
    (k,) = (k for k, line in enumerate(setup) if "%pip" in line)
    assert setup[k].strip() == '%pip install --quiet "isoloss[experiments,report]"'
    assert setup[k - 1].startswith('if importlib.util.find_spec("isoloss") is None:')


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_committed_without_outputs(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert code[0].metadata.tags == ["parameters"]
    assert 'EXPERIMENT = "IRIS_FF"' in code[0].source
