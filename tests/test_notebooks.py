"""The notebooks run from start to end on quick results, and make some where there is no folder."""

from __future__ import annotations

import warnings
from pathlib import Path

import nbformat
import pytest
from tests.once import once
from tests.test_cli import by_commands

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the notebook client's own imports
    from jupyter_client import AsyncKernelManager
    from jupyter_core.utils import run_sync
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = ("walk", "weight_decay", "pca")
FORGET = """
import sys
if "matplotlib.pyplot" in sys.modules:
    sys.modules["matplotlib.pyplot"].close("all")
%reset -f
"""


@pytest.fixture(scope="module")
def kernel():
    """One for all notebooks: in each, nothing has a name yet, and only what was loaded is there."""
    one = AsyncKernelManager(kernel_name="python3")  # begun by the first notebook
    yield one
    run_sync(one.shutdown_kernel)(now=True)


def executed(kernel, name, results, alone=False):
    """A notebook as it is once all its cells have run on results, or on quick ones it makes."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    if alone:
        (cell,) = (cell for cell in notebook.cells if "subprocess" in cell.source)
        cell.source = cell.source.replace('"--out"', '"--runs", "1", "--set", "steps=9", "--out"')
    (parameters,) = (
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    parameters.source = f'EXPERIMENT = "IRIS_FF"\nRESULTS = {str(results)!r}'
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        notebook.cells.insert(0, nbformat.v4.new_code_cell(FORGET))
        client = NotebookClient(notebook, km=kernel, timeout=300)
        try:
            client.execute()
        finally:
            client.kc.stop_channels()
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
def test_a_notebook_runs_and_shows_its_figures(kernel, name, pictures, tmp_path_factory, tmp_path):
    alone = name == "pca"  # makes its results
    folder = tmp_path / "new" if alone else once(tmp_path_factory, "walked", by_commands)
    notebook = executed(kernel, name, folder, alone)
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
def test_a_notebook_without_results_tells_the_command(kernel, tmp_path):
    with pytest.raises(CellExecutionError, match="isoloss traverse IRIS_FF --out"):
        executed(kernel, "walk", tmp_path)


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
