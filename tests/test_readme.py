"""What the README shows works as pasted."""

import re
from pathlib import Path

import pytest
import torch

import isoloss

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_python_example_works_as_pasted(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    torch.manual_seed(0)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    path = names["path"]
    assert path.outcome is isoloss.Outcome.CONVERGED
    assert path.steps["level_error"].abs().max() <= 1.01e-3
    assert path.steps["regularizer"].iloc[-1] < 0.7 * path.steps["regularizer"].iloc[0]
    assert torch.equal(names["problem"].current(), path.points[-1])
    assert "converged" in capsys.readouterr().out
