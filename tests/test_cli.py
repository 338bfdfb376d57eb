"""The commands as a user types them."""

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from tests.once import once
from tests.report.made import undrawn

from isoloss import Problem, __version__, experiments, open_results
from isoloss.__main__ import main as installed
from isoloss.cli import experiments as listing
from isoloss.cli import main
from isoloss.experiments import Data, datasets
from isoloss.runs.pool import handling


def isoloss(*arguments):
    try:
        main(list(arguments))
    except SystemExit as end:
        return end.code or 0
    return 0


TWO = ("--runs", "2", "--seed", "5")
BY_PAPER = ("--method", "paper", "--set", "steps=120")


def by_commands(out):
    """Write short walks of IRIS_FF, weight decay and their report into a folder; the folder."""
    for command in (
        ("traverse", "IRIS_FF", *TWO, *BY_PAPER),
        ("traverse", "IRIS_FF", *TWO, "--set", "steps=30"),
        ("decay", "IRIS_FF", *TWO, "--epochs", "4", "--penalties", "0,1e-3,1e6"),
        ("report", "IRIS_FF"),
    ):
        with undrawn():
            assert isoloss(*command, "--out", str(out)) == 0
    return out


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Two short walks of IRIS_FF and their report, made by the commands."""
    return once(tmp_path_factory, "walked", by_commands)


@pytest.mark.slow
def test_a_comparison_with_other_settings_is_refused_and_begun_anew_when_asked(walked, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(walked, out, ignore=shutil.ignore_patterns("run-001"))
    compare = ("compare", "IRIS_FF", "--set", "steps=3", "--out", str(out))
    assert isoloss(*compare, "--epochs", "2") == 0
    assert isoloss(*compare, "--epochs", "3") == 2
    assert isoloss(*compare, "--epochs", "3", "--restart") == 0
    folder = out / "IRIS_FF" / "equivalent" / "sqp"
    kept = {
        json.loads(file.read_text())["config"]["epochs"]: file.parent.name
        for file in sorted(folder.rglob("*run-000*/config.json"))
    }
    assert kept[3] == "run-000"
    assert 2 in kept


@pytest.mark.parametrize(("method", "steps"), [("sqp", 60), ("paper", 140)])
def test_a_walk_goes_on_to_a_later_limit_as_if_asked_for_at_once(walked, tmp_path, method, steps):
    again, at_once = tmp_path / "again", tmp_path / "at-once"
    shutil.copytree(walked, again, ignore=shutil.ignore_patterns("run-001"))
    walk = ("traverse", "IRIS_FF", "--seed", "5", "--runs", "1", "--method", method)
    for out in (again, at_once):
        assert isoloss(*walk, "--set", f"steps={steps}", "--out", str(out)) == 0
    paths = [open_results(out).paths("IRIS_FF", method)[0] for out in (again, at_once)]
    first, second = (path.steps.drop(columns="seconds") for path in paths)
    pd.testing.assert_frame_equal(first, second)
    assert sum(first["kind"].isin(["sqp", "predict"])) == steps
    assert torch.equal(paths[0].points, paths[1].points)
    assert paths[0].metadata["config"] == paths[1].metadata["config"]


def test_finished_runs_are_not_done_again_and_other_settings_are_refused(walked, tmp_path, capsys):
    out = shutil.copytree(walked, tmp_path / "out")
    decay = ("decay", "IRIS_FF", *TWO, "--epochs", "4", "--out", str(out), "--penalties")
    walk = ("traverse", "IRIS_FF", *TWO, "--method", "paper", "--out", str(out), "--set")
    folders = [out / "IRIS_FF" / kind for kind in ("decay", "traverse/paper")]
    before = [(f / "run-000/points.safetensors").stat().st_mtime_ns for f in folders]
    for again, other, difference in (
        ((*decay, "1e6,0,1e-3"), (*decay, "0"), "penalties was [0.0, 0.001, 1000000.0], now [0.0]"),
        ((*walk, "steps=120"), (*walk, "steps=119"), "stop.steps was 120, now 119"),
    ):
        assert isoloss(*again) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert (
            f"2 of 2 runs are finished already, in {folders[0 if 'decay' in again else 1]}." in said
        )
        assert isoloss(*other) == 2
        assert difference in capsys.readouterr().err
    assert [(f / "run-000/points.safetensors").stat().st_mtime_ns for f in folders] == before


def test_runs_are_read_back_with_their_seeds_and_sqp_needs_far_fewer_steps(walked):
    paths = open_results(walked).paths("IRIS_FF", "paper")
    for paper, sqp in zip(paths, open_results(walked).paths("IRIS_FF", "sqp"), strict=True):
        assert sqp.steps["regularizer"].iloc[-1] < 0.5 * paper.steps["regularizer"].iloc[-1]
        assert (sqp.steps["kind"] == "sqp").sum() == 30
    assert [path.metadata["config"]["seed"] for path in paths] == [5, 6]
    assert [path.outcome.value for path in paths] == ["step_limit"] * 2
    assert all((path.steps["kind"] == "predict").sum() == 120 for path in paths)
    assert all(path.metadata["made_with"]["isoloss"] == __version__ for path in paths)
    assert all(path.metadata["made_with"]["threads"] == 1 for path in paths)
    assert open_results(walked).decay("IRIS_FF")["seed"].tolist() == [5, 5, 5, 6, 6, 6]


def test_a_run_by_command_is_the_run_by_python_to_the_bit(walked):
    by_command = open_results(walked).paths("IRIS_FF", "paper")[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = experiments.get("IRIS_FF").start(seed=5)
    torch.set_num_threads(threads)
    assert torch.equal(start.problem.current(), by_command.points[0])
    by_command.load_into(start.model)
    assert torch.equal(start.problem.current(), by_command.points[-1])


def test_stored_points_are_on_the_level_in_double_precision(walked):
    experiment = experiments.get("IRIS_FF")
    data = experiment.data(0)
    problem = Problem(
        experiment.network(0), "cross_entropy", (data.inputs, data.targets), dtype=torch.float64
    )
    for method, tolerance in (("paper", 1.01e-5), ("sqp", 1.01e-3 * 0.025)):
        paths = open_results(walked).paths("IRIS_FF", method)
        assert len(paths) == 2
        for path in paths:
            for theta in path.points:
                loss = problem.loss(theta.double()).item()
                assert loss == pytest.approx(path.level, abs=tolerance)


def test_the_numbers_of_the_report_are_those_of_the_runs(walked):
    folder = walked / "report" / "IRIS_FF"
    assert "sqp run-001" in (folder.parent / "index.html").read_text(encoding="utf-8")
    ends = [p.steps["regularizer"].iloc[-1] for p in open_results(walked).paths("IRIS_FF", "paper")]
    mean = re.search(r"paper,R,end,([0-9.]+),", (folder / "walk.csv").read_text())
    assert mean is not None
    assert float(mean[1]) == pytest.approx(sum(ends) / 2)
    outcomes = pd.read_csv(folder / "outcomes.csv").groupby("method")
    assert outcomes.get_group("paper")["R_end"].tolist() == ends
    assert outcomes.size().to_dict() == {"paper": 2, "sqp": 2}


@pytest.mark.slow
def test_version_and_help_answer_without_loading_torch():
    code = """if True:
        import sys
        from isoloss.cli import main
        for line in sys.argv[1:]:
            try:
                main(line.split())
            except SystemExit as end:
                assert not end.code
            print({'torch', 'numpy', 'pandas'} & sys.modules.keys() or 'quick', flush=True)
            print("END OF", line)
    """
    commands = ("experiments", "data fetch", "traverse", "decay", "compare", "report", "reproduce")
    lines = [f"{command} --help" for command in (*commands, "verify", "check", "new")]
    lines.append("--version")
    done = subprocess.run(
        [sys.executable, "-c", code, *lines], check=True, capture_output=True, text=True
    )
    rest = done.stdout
    for line in lines:
        told, rest = rest.split(f"END OF {line}\n")
        *shown, loaded = told.splitlines()
        assert loaded == "quick", line
        assert shown == [f"isoloss {__version__}"] or shown[0].startswith("Usage: ")
        assert all(len(one) <= 80 for one in shown)
    assert not rest


def test_experiments_lists_all_five_and_what_a_run_costs_where_data_is_at_hand(capsys, monkeypatch):
    monkeypatch.setattr(datasets, "at_hand", lambda name: name == "iris")
    threads = torch.get_num_threads()
    assert isoloss("experiments") == 0
    assert torch.get_num_threads() == threads
    shown = capsys.readouterr().out
    for name in ("IRIS_FF", "MPG_FF", "MNIST_FF", "MNIST_CONV", "CIFAR10_CONV", "685,450"):
        assert name in shown
    rows = {line.split()[0]: line.rstrip() for line in shown.splitlines()[1:6]}
    assert re.search(r"here +[\d,]+ +[\d.]+ (s|min)$", rows["IRIS_FF"])
    assert rows["MPG_FF"].endswith("to fetch")
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_costs_grow_with_the_examples_and_the_test_set_counts_as_often_as_it_is_recorded(
    monkeypatch, capsys
):
    def data(self, seed):
        pairs = [(torch.ones(n, 1, 28, 28), torch.zeros(n, dtype=torch.int64)) for n in (1000, 400)]
        return Data(*pairs[0], *pairs[1], torch.arange(1000))

    def seconds(run):  # of a hundred images: 1 with a gradient, 3 of the test set
        return 1.0 if isinstance(run()[1], torch.Tensor) else 3.0

    monkeypatch.setattr(listing, "_seconds", seconds)
    monkeypatch.setattr(experiments.Experiment, "data", data)
    monkeypatch.setattr(datasets, "at_hand", lambda name: name == "mnist")
    monkeypatch.setattr(experiments, "names", lambda: ["MNIST_CONV"])
    assert listing.cost(experiments.get("MNIST_CONV")) == (10.0, 5_000 * (10 + 3 * 4 / 50))
    assert isoloss("experiments") == 0
    assert re.search(r" 5,000 +here +0.1 +14 h$", capsys.readouterr().out.splitlines()[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["traverse", "IRIS_F"], ["IRIS_F", "did you mean IRIS_FF"]),
        (["traverse", "all"], ["unknown experiment 'all'"]),
        (["traverse", "[red]x[/]"], ["'[red]x[/]'"]),
        (["traverse", "IRIS_FF", "--method", "papr"], ["papr", "paper"]),
        (["traverse", "IRIS_FF", "--set", "steps=0"], ["steps of Stop must be greater than 0"]),
        (["traverse", "IRIS_FF", "--set", "=[/]"], ["KEY=VALUE", "got =[/]"]),
        (["traverse", "IRIS_FF", "--runs", "0"], ["--runs", "whole number from 1", "got 0"]),
        (["traverse", "IRIS_FF", "--runs", "9" * 30], ["--runs", "to 10000, got 99999999"]),
        (["traverse", "IRIS_FF", "--set", "memory=" + "9" * 20], ["memory of SQP must be less"]),
        (
            ["traverse", "IRIS_FF", "--set", "steps=" + "9" * 20],
            ["steps of Stop must be less than"],
        ),
        (
            ["traverse", "IRIS_FF", "--set", "chunk_size=" + "9" * 20],
            ["chunk_size of Level", "less"],
        ),
        (
            ["traverse", "IRIS_FF", "--set", "points_every=" + "9" * 5000],
            ["points_every of Record"],
        ),
        (["verify", "\ud800"], ["folder cannot be", "surrogates"]),
        (["traverse", "\x1b[2J\ud800:x"], [r"got \x1b[2J\ud800:x"]),
        (["decay", "IRIS_FF", "--epochs", "9" * 20], ["epochs of DecayOptions must be less than"]),
        (
            ["decay", "IRIS_FF", "--penalties", "1,1e999"],
            ["finite numbers from 0, got penalty inf"],
        ),
        (["traverse", "IRIS_FF", "--runs", "2.5"], ["--runs", "a whole number", "got 2.5"]),
        (["traverse", "IRIS_FF", "--seed", "-1"], ["--seed", "from 0", "got -1"]),
        (["traverse", "IRIS_FF", "--seed", str(2**64)], ["--seed", "to 4294967295, got 184467"]),
        (["traverse", "IRIS_FF", "--device", "gpu"], ["--device must be", "cuda", "got gpu"]),
        (["traverse", "IRIS_FF", "--device", "meta"], ["--device must be", "got meta"]),
        (["traverse", "IRIS_FF", "--device", "cuda:99"], ["--device cuda:99 needs a GPU", "cpu"]),
        (["traverse", "IRIS_FF", "--checkpoint-every", "-1"], ["--checkpoint-every", "got -1"]),
        (["traverse", "IRIS_FF", "--checkpoint-every", "nan"], ["a finite number", "got nan"]),
        (["traverse", "IRIS_FF", "--checkpoint-every", "inf"], ["a finite number", "got inf"]),
        (["traverse", "IRIS_FF", "--out", "~nobody-of-that-name/x"], ["--out", "got ~nobody-of-t"]),
        (["traverse", "IRIS_FF", "--out="], ["--out", "must name a folder, got nothing"]),
        (["traverse", "IRIS_FF", "--track", "comet"], ["unknown tracker 'comet'", "tensorboard"]),
        (["traverse", "IRIS_FF", "--wrong"], ["--wrong"]),
        (["decay", "IRIS_FF", "--penalties", "0,-1"], ["penalty", "-1"]),
        (["decay", "IRIS_FF", "--penalties", "0,,1"], ["--penalties must be numbers", "0,,1"]),
        (["decay", "IRIS_FF", "--penalties="], ["--penalties must be numbers", "got nothing"]),
        (["decay", "IRIS_FF", "--epochs", "0"], ["--epochs", "of at least 1, got 0"]),
        (["decay", "IRIS_FF", "--set", "held_out=1"], ["held_out of DecayOptions", "got 1"]),
        (["compare", "IRIS_F"], ["IRIS_F", "did you mean IRIS_FF"]),
        (["compare", "IRIS_FF"], ["no folder results", "isoloss reproduce"]),
        (["reproduce", "IRIS_FF", "MPG"], ["MPG"]),
        (["reproduce", "IRIS_FF", "--runs", "0"], ["--runs"]),
        (["check", "IRIS_FF", "--seed", "x"], ["--seed", "a whole number", "got x"]),
        (["report", "NONSENSE"], ["NONSENSE"]),
        (["walk"], ["walk"]),
    ],
)
def test_wrong_arguments_exit_2_with_a_sentence_and_write_nothing(
    arguments, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert isoloss(*arguments) == 2
    *usage, said = capsys.readouterr().err.splitlines()
    assert not usage or usage[0].startswith("Usage: ")
    for word in words:
        assert word in said
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_read_or_written_are_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for command, out, words in (
        ("report", "~/mine", f"no folder {tmp_path}/mine"),
        ("report", "~/empty", "isoloss traverse IRIS_FF"),
        ("traverse", "~/file", "is a file"),
    ):
        assert isoloss(command, "IRIS_FF", f"--out={out}") == 2
        assert words in capsys.readouterr().err
    assert isoloss("report", "mine.py:build", "--out=~/empty") == 2
    remedy = f"'isoloss traverse mine.py:build --out {tmp_path}/empty'"
    assert f"holds no walk of mine.py:build; make one with {remedy}" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    assert not any((tmp_path / "empty").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_keeps_what_was_walked(tmp_path, number, code):
    """Ctrl-C, and what ends a job of a cluster."""
    command = [sys.executable, "-m", "isoloss", "traverse", "IRIS_FF", "--runs", "1"]
    command += ["--method", "paper", "--set", "steps=1000000", "--out", str(tmp_path)]
    command += ["--checkpoint-every", "0.2"]
    folder = tmp_path / "IRIS_FF" / "traverse" / "paper" / "run-000"
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 240
        while not (folder / "checkpoint" / "a").exists():  # of the walk
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, number)
        said, _ = process.communicate(timeout=240)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == code
    assert "Stopping: what is under way is brought to where the runs can be continued" in said
    assert ("Ctrl-C again ends them at once" in said) == (number == signal.SIGINT)
    assert said.count("Stopping") == 1
    assert "run the same command again" in said
    assert "failed" not in said
    (path,) = open_results(tmp_path).paths("IRIS_FF", "paper")
    assert path.outcome.value == "interrupted"
    assert len(path.steps) >= 1


def test_ctrl_c_ends_a_command_even_within_an_import_that_swallows_it(tmp_path, monkeypatch):
    """As imports of torch and numpy do."""
    press = "signal.raise_signal(signal.SIGINT)"
    swallows = f"import signal\ntry:\n    {press}\nexcept KeyboardInterrupt:\n    pass\n"
    (tmp_path / "swallows.py").write_text(swallows)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "_exit", sys.exit)  # which, unlike the true one, could be swallowed
    runs = lambda: importlib.import_module("swallows"), lambda: signal.raise_signal(signal.SIGINT)
    for run in runs:
        monkeypatch.setattr("isoloss.cli.main", run)
        heeded = handling(signal.default_int_handler, signal.SIGINT)
        with heeded, pytest.raises(SystemExit, match="130"):
            installed()


@pytest.mark.parametrize("here", [True, False])
def test_reproduce_leaves_the_report_to_a_machine_that_can_draw(
    monkeypatch, tmp_path, capsys, here
):
    made = []
    for name in ("traverse", "decay", "compare", "report"):
        monkeypatch.setattr(f"isoloss.cli.runs.{name}", lambda *_, n=name, **__: made.append(n))
    monkeypatch.setattr("isoloss.cli.runs.find_spec", lambda _: here or None)
    assert isoloss("reproduce", "IRIS_FF", "MPG_FF", "--out", str(tmp_path)) == 0
    runs = ["traverse", "traverse", "decay", "compare"]
    assert made == [*runs, *["report"] * here] * 2
    assert ("No report was written" in capsys.readouterr().out) is not here
