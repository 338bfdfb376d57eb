"""A user's own file as what is walked: loading, its name, its runs, resuming, and every mistake."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.report.made import made_path, undrawn, write_run

import isoloss
from isoloss import experiments, open_results
from isoloss.cli import main
from isoloss.cli.reports import template
from isoloss.projects import Project, is_project
from isoloss.report import report
from isoloss.runs.walk import WalkRun, walk_settings
from isoloss.store import run_folder
from isoloss.store.folder import begin, save_failure

FILE = """
import random
import numpy as np
import torch
from torch import nn
import isoloss
from helper import COUNT

def build(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(COUNT, 3).double()
    return isoloss.Problem(model, "mse", (x, x.prod(1, keepdim=True)))

def probed(seed):
    problem = build(seed)
    return problem, {"test": build(seed), "other": build(seed)}

def misnamed(seed):
    return build(seed), {"my test": build(seed)}

def flaky(seed):
    flaky.calls = getattr(flaky, "calls", 0) + 1
    return build(seed + flaky.calls)

def unseeded(seed):
    model = nn.Linear(3, 1)
    x = torch.randn(9, 3) * random.random() * float(np.random.rand())
    return isoloss.Problem(model, "mse", (x, torch.randn(9, 1)))

def wrong_gradient(seed):
    def model(p, x):
        return x @ p["w"].detach() + x @ p["w"] * 1e-3
    return isoloss.Problem(model, "mse", (torch.randn(9, 3), torch.randn(9, 1)),
        parameters={"w": torch.ones(3, 1)}, dtype=torch.float64)

def two(seed, other): ...
def seedless(): ...
def three(seed): return 3
def listed(seed): return build(seed), [build(seed)]
def named(seed): return build(seed), {1: build(seed)}
def boom(seed):
    raise ValueError("no [red]such[/] thing\\nat all")
def picky(seed):
    return build(seed) if seed else boom(seed)
def own(seed):
    raise isoloss.InputError("isoloss says this itself, in one sentence")
def leaves(seed):
    raise SystemExit(3)
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("COUNT = 20\n")
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("helper", None)


def command(*arguments: str) -> int:
    try:
        main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_function_gives_a_problem_and_probes(folder) -> None:
    begun = Project.of("mine.py:probed").start(3)
    again = Project.of(f"{folder}/mine.py:build").start(3)
    assert list(begun.probes) == ["test", "other"]
    assert begun.problem.examples == 20
    assert torch.equal(begun.problem.current(), again.problem.current())
    assert again.probes == {}


def test_random_numbers_are_seeded_before_the_call(folder) -> None:
    project = Project.of("mine.py:unseeded")
    first, second, other = (project.start(seed).problem for seed in (5, 5, 6))
    assert torch.equal(first.current(), second.current())
    assert first.loss(first.current()) == second.loss(first.current())
    assert not torch.equal(first.current(), other.current())


def test_the_problem_keeps_its_type_unless_another_is_asked_for(folder) -> None:
    project = Project.of("mine.py:probed")
    assert project.start(0).problem.dtype == torch.float64
    begun = project.start(0, dtype=torch.float32, chunk_size=6)
    assert begun.problem.dtype == begun.probes["test"].dtype == torch.float32
    assert begun.problem.chunk_size == 6
    assert "dtype" not in walk_settings(project, "sqp").config(0)
    assert walk_settings(project, "sqp", ["dtype=float32"]).config(0)["dtype"] == "float32"


MISTAKES: dict[str, list[str]] = {
    "two": ["two in mine.py cannot be called with (seed)", "'other'"],
    "seedless": ["seedless in mine.py", "(seed)", "too many"],
    "number": ["number in mine.py must be a function that takes a seed, got int"],
    "biuld": ["'biuld'", "did you mean build?"],
    "three": ["must return an isoloss.Problem", "returned int"],
    "listed": ["returned (Problem, list)", "{'test': test_problem}"],
    "named": ["returned (Problem, dict)"],
    "boom": ["boom(0) in mine.py failed in line 43 (ValueError: no [red]such[/] thing)"],
    "own": ["isoloss says this itself"],
    "leaves": ["SystemExit: 3", "line 49"],
}


@pytest.mark.parametrize("function", MISTAKES)
def test_what_a_function_must_not_be_or_do_is_said(refuses, folder, function: str) -> None:
    with refuses(*MISTAKES[function]):
        Project.of(f"mine.py:{function}").start(0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("import nothere", ["line 1", "ModuleNotFoundError", "nothere"]),
        ("x = 1\ndef build(seed:", ["line 2", "SyntaxError"]),
        ("import sys\nsys.exit(2)", ["line 2", "SystemExit"]),
        ("\n\n1 / 0", ["line 3", "ZeroDivisionError"]),
        ("x\0", ["failed", "null bytes"]),
    ],
)
def test_files_that_cannot_be_run_are_refused(
    refuses, folder, content: str, words: list[str]
) -> None:
    (folder / "bad.py").write_text(content)
    with refuses("bad.py", *words):
        Project.of("bad.py:build")


@pytest.mark.parametrize(
    "text", ["mine.py", "mine.py:", "mine:build", "mine.py:a/b", "mine.py:..", ":build", ".py:1"]
)
def test_what_names_no_function_of_a_file_is_refused(refuses, folder, text: str) -> None:
    with refuses(text, "FILE.py:FUNCTION"):
        Project.of(text)


def test_files_that_are_not_there_or_too_long_for_a_folder_are_refused(refuses, folder) -> None:
    with refuses("gone.py", "isoloss new"):
        Project.of("gone.py:build")
    (folder / "dir.py").mkdir()
    with refuses("dir.py"):
        Project.of("dir.py:build")
    long = f"{'x' * 200}.py"
    (folder / long).write_text(FILE)
    with refuses("too long", "120"):
        Project.of(f"{long}:build")


@example(stem="..")
@example(stem="../../up")
@example(stem="report")
@example(stem="-rf")
@given(stem=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1))
def test_the_name_is_one_safe_component(stem: str) -> None:
    name = Project(Path(f"/some/{stem}.py"), "build").name
    out = Path("/out")
    assert (out / name).parent == out
    assert (out / name).resolve().parent == out
    assert name not in {*experiments.names(), "report", ".", ".."}
    assert name.endswith(".build")
    assert all(c.isascii() and (c.isalnum() or c in "_.-") for c in name)
    assert not name.startswith(".")
    assert is_project(f"{stem}.py:build")
    assert not any(is_project(name) for name in experiments.names())


def execute(run: WalkRun, after: int | None = None) -> Any:
    """Do a run in this process; interrupted after so many rows."""
    seen = 0

    def cancelled() -> bool:
        nonlocal seen
        seen += 1
        return after is not None and seen > after

    return run.execute(lambda news: None, cancelled)


def planned(out: str, function: str = "probed", *pairs: str) -> WalkRun:
    project = Project.of(f"mine.py:{function}")
    settings = walk_settings(project, "sqp", [*(pairs or ["steps=12"]), "kkt_residual=0"])
    return WalkRun(0, 4, run_folder(Path(out), project.name, "sqp", 0), settings)


def test_a_run_is_resumed_with_the_same_bits_and_is_that_of_the_library(folder, refuses) -> None:
    whole, cut = planned("whole"), planned("cut")
    assert execute(whole).ending == "step_limit"
    assert execute(cut, after=9).ending == "interrupted"
    assert not cut.finished()
    assert execute(cut).ending == "step_limit"
    assert cut.finished()
    one, two = (open_results(out).paths("mine.probed", "sqp")[0] for out in ("whole", "cut"))
    assert len(one.steps) == 13
    pd.testing.assert_frame_equal(
        one.steps.drop(columns="seconds"), two.steps.drop(columns="seconds")
    )
    assert torch.equal(one.points, two.points)
    assert {"test_loss", "other_loss"} <= set(one.steps)
    assert one.metadata["config"]["project"]["function"] == "probed"
    stop = isoloss.Stop(steps=12, kkt_residual=0)
    problem = Project.of("mine.py:probed").start(4).problem
    assert torch.equal(one.points, isoloss.traverse(problem, stop=stop, progress=False).points)
    (folder / "mine.py").write_text(FILE + "\n# changed\n")  # another file of the same name
    with refuses("mine.probed", "sha256", "--restart"):
        cut.finished()


def test_a_project_is_another_one_once_what_it_imports_from_its_folder_has_changed(
    folder, refuses
) -> None:
    for place in ("parts", "env/lib/site-packages"):
        (folder / place).mkdir(parents=True)
        name = place.replace("/", "_").replace("-", "_")
        (folder / place / f"{name}_mine.py").write_text("SIZE = 8\n")
    (folder / "data.csv").write_text("1")
    (folder / "unused.py").write_text("x = 1\n")
    paths = "import sys\nsys.path.append('env/lib/site-packages')\n"
    both = "import parts.parts_mine, env_lib_site_packages_mine\n"
    (folder / "mine.py").write_text(f"{paths}{both}{FILE}")
    project = Project.of("mine.py:build")
    imports = project.identity["project"]["imports"]
    assert list(imports) == ["helper.py", "parts/parts_mine.py"]
    run = planned("out", "build", "steps=1")
    assert not execute(run).failed
    assert run.finished()
    for unseen in ("data.csv", "unused.py", "env/lib/site-packages/env_lib_site_packages_mine.py"):
        (folder / unseen).write_text("y = 2\n")
    assert run.finished()
    (folder / "parts/parts_mine.py").write_text("SIZE = 9\n")
    with refuses("project.imports.parts/parts_mine.py was", "--restart"):
        run.finished()
    for name in ("parts", "parts.parts_mine", "env_lib_site_packages_mine"):
        sys.modules.pop(name)


def test_other_weights_for_the_same_seed_are_refused_when_going_on(folder, refuses) -> None:
    project = Project.of("mine.py:build")
    weights = project.start(0).problem.current()
    project.start(0, weights=weights)
    with refuses("build(1)", "other weights", "--restart"):
        project.start(1, weights=weights)


@pytest.mark.slow
def test_the_template_runs_as_it_is_from_new_to_report(folder, capsys) -> None:
    assert command("new") == 0
    printed = capsys.readouterr().out
    assert printed == template()
    (folder / "my_project.py").write_text(printed)
    assert command("check", "my_project.py:build") == 0
    table = capsys.readouterr().out
    assert table.startswith("| check | found |")
    assert "FAILED" not in table
    walk = ("traverse", "my_project.py:build", "--out", "out", "--set", "steps=4")
    assert command(*walk) == 0
    assert "run-000" in capsys.readouterr().out
    assert command(*walk) == 0
    assert "1 of 1 runs are finished already" in capsys.readouterr().out


@pytest.mark.slow
def test_a_walk_without_probes_is_walked_and_reported(folder, capsys) -> None:
    run = planned("out", "build", "steps=4")
    news = execute(run)
    assert not news.failed
    (folder / "mine.py").unlink()  # reading runs no code of the user's
    with undrawn("pdf"):
        assert command("report", "mine.py:build", "--out", "out") == 0
    assert "evaluations" in capsys.readouterr().out
    assert (folder / "out/report/mine.build/walk.png").stat().st_size > 10_000
    assert "build of mine.py" in (folder / "out/report/index.html").read_text()


def test_check_prints_its_table_and_leaves_the_random_states_as_they_were(folder, capsys) -> None:
    states = torch.get_rng_state(), random.getstate()
    assert command("check", "mine.py:build", "--regularizer", "l1", "--seed", "2") == 0
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert "regularizer R, l1" in capsys.readouterr().out
    assert command("check", "mine.py:wrong_gradient") == 1
    assert "FAILED" in capsys.readouterr().out


def test_check_refuses_probes_with_the_sentence_of_a_walk(folder, capsys) -> None:
    assert command("check", "mine.py:misnamed") == 2
    sentence = capsys.readouterr().err.removeprefix("isoloss: ").strip()
    assert "the name of a probe must be plain, such as 'test'" in sentence
    news = execute(planned("out", "misnamed"))
    assert news.ending == sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("traverse", "mine.py:build", "--device", "cuda"), ["--device cuda", "model.to('cuda')"]),
        (("traverse", "mine.py:biuld"), ["did you mean build?"]),
        (("traverse", "mine.py:build", "--set", "stesp=3"), ["'stesp'", "did you mean steps"]),
        (("check", "mine.py:build", "--regularizer", "l3"), ["'l3'", "did you mean l1?"]),
        (("check", "NONSENSE"), ["'NONSENSE'"]),
        (("decay", "mine.py:build"), ["weight decay", "isoloss traverse mine.py:build"]),
        (
            ("report", "mine.py:build"),
            ["no folder results", "'isoloss traverse mine.py:build --out results'"],
        ),
        (("report", "../up", "--out", "."), ["'../up'"]),
        (("report", "mine.biuld", "--out", "."), ["'mine.biuld'"]),
    ],
)
def test_wrong_arguments_exit_2_with_a_sentence(
    folder, capsys, arguments: tuple[str, ...], words: list[str]
) -> None:
    assert command(*arguments) == 2
    said = capsys.readouterr().err
    assert all(word in " ".join(said.split()) for word in words), said


@pytest.mark.slow
def test_a_function_that_fails_for_a_seed_fails_its_run_alone(folder, capsys) -> None:
    walk = ("traverse", "mine.py:picky", "--runs", "2", "--set", "steps=2", "--out", "out")
    assert command(*walk) == 1
    sentence = "picky(0) in mine.py failed in line 43 (ValueError: no [red]such[/] thing)"
    assert f"failed: out/mine.picky/traverse/sqp/run-000: {sentence}" in capsys.readouterr().out
    assert len(open_results("out").paths("mine.picky", "sqp")) == 1
    assert open_results("out").unfinished("mine.picky", "sqp")["run-000"].startswith(sentence)


def failed(out: Path, name: str, runs: int) -> None:
    """Runs of a project that all failed, as the commands write them."""
    file, _, function = name.partition(":")
    project = Project.named(name).name
    for k in range(runs):
        run = run_folder(out, project, "sqp", k)
        begin(run, {"project": {"file": file, "function": function}, "seed": k}, {})
        save_failure(run, f"{function}({k}) failed; fix it and try again")


def test_of_runs_that_all_failed_the_reasons_are_said_and_the_command_that_made_them(
    folder, refuses, capsys
) -> None:
    failed(folder, "mine.py:boom", 3)
    results = open_results(folder)
    for read in (results.walks, lambda name: report(results, name)):
        with refuses(
            "holds no walk of mine.boom that can be read (sqp, run-000: boom(0) failed; fix it",
            "sqp, run-001: boom(1) failed; fix it and try again; and 1 more)",
            f"'isoloss traverse mine.py:boom --out {folder}' again",
        ):
            read("mine.boom")
    assert command("report", "else/where/mine.py:boom", "--out", ".") == 2
    assert "'isoloss traverse else/where/mine.py:boom --out .' again" in capsys.readouterr().err


def test_a_report_of_all_is_of_what_is_there_and_one_that_fails_leaves_the_others(
    folder, capsys
) -> None:
    assert command("report", "all", "--out", ".") == 2
    assert "holds no results; make some with 'isoloss reproduce" in capsys.readouterr().err
    failed(folder, "also.py:boom", 1)
    write_run(folder, made_path(5), 0, "mine.build")
    write_run(folder, made_path(5), 0)
    with undrawn():
        assert command("report", "all", "--out", ".") == 2
        shown = capsys.readouterr()
        names = [line.partition(":")[0] for line in shown.out.splitlines() if "mean ±" in line]
        assert names == ["IRIS_FF", "mine.build"]
        assert len(shown.err.splitlines()) == 1
        assert "boom(0) failed" in shown.err
        assert command("report", "gone.py:build", "mine.py:build", "NONE", "--out", ".") == 2
    shown = capsys.readouterr()
    assert "mine.build: mean ±" in shown.out
    assert [line.split()[:5] for line in shown.err.splitlines()] == [
        ["isoloss:", ".", "holds", "no", "walk"],
        ["isoloss:", "unknown", "experiment", "'NONE';", "there"],
    ]
