"""The display of many runs keeps the last word of each."""

from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from isoloss import experiments
from isoloss.cli import options
from isoloss.progress import TimeLeft
from isoloss.runs.run import Display, News
from isoloss.runs.walk import WalkRun, walk_settings

ROW = {"evaluations": 7, "regularizer": 3.5, "angle_degrees": 120.0, "test_loss": 0.25}


def shown(*news):
    settings = walk_settings(experiments.get("IRIS_FF"), "sqp")
    runs = [WalkRun(k, 10 + k, Path(f"run-{k:03d}"), settings) for k in range(2)]
    display = Display("IRIS_FF sqp", runs)
    with display.live:
        for one in news:
            display.show(one)
    console = Console(width=80, markup=False)
    with console.capture() as capture:
        console.print(display.summary())
    return display, capture.get()


def test_the_summary_has_a_line_per_run():
    _, text = shown(News(0, "walking", 3, ROW), News(0, "done", 5, ROW, "converged"))
    lines = [line.split() for line in text.splitlines()]
    assert lines[1] == ["run-000", "10", "5", "7", "3.5", "120.00", "0.25", "converged"]
    assert lines[2] == ["run-001", "11", "not", "started"]


@pytest.mark.parametrize("terminal", [True, False])
def test_no_number_of_a_table_is_cut_off_where_there_is_little_room(monkeypatch, terminal):
    display, whole = shown(News(0, "done", 5, {**ROW, "evaluations": 7_654_321}, "converged"))
    narrow = Console(width=40, markup=False, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(options, "console", narrow)
    with narrow.capture() as capture:
        options.show(display.summary())
    assert "7,654,321" in whole
    assert capture.get() == whole


def test_of_very_many_runs_only_those_that_go_on_have_a_line(capsys):
    settings = walk_settings(experiments.get("IRIS_FF"), "sqp")
    display = Display("X", [WalkRun(k, k, Path(f"run-{k:03d}"), settings) for k in range(1_000)])
    display.show(News(7, "walking", 3, ROW))
    display.show(News(8, "done", 5, ROW, "converged"))
    assert [task.id for task in display.live.tasks if task.visible] == [7]
    assert capsys.readouterr().err.startswith("X run-008 converged")


def test_failures_are_named_with_their_reason_brackets_and_all(capsys):
    sentence = "no [red]memory[/] for [/x] or \x1b[2J\ud800"
    display, text = shown(
        News(0, "done", ending="interrupted", notes=("torn",)),
        News(1, "done", ending=sentence, failed=True),
    )
    assert display.failures == [f"run-001: {sentence}"]
    assert display.notes == ["torn"]
    assert "failed" in text
    assert capsys.readouterr().err.splitlines() == [
        "IRIS_FF sqp run-000 interrupted",
        r"IRIS_FF sqp run-001 failed: no [red]memory[/] for [/x] or \x1b[2J\ud800",
    ]


@pytest.mark.parametrize(
    ("total", "begun", "over", "says"),
    [
        (100, True, False, True),
        (100, True, True, False),
        (None, True, False, False),
        (9, False, False, False),
    ],
)
def test_the_time_left_is_shown_only_of_what_goes_on_to_a_known_end(total, begun, over, says):
    progress = Progress(TimeLeft())
    task = progress.add_task("", total=total, start=begun)
    progress.update(task, completed=4)
    if over:
        progress.stop_task(task)
    assert TimeLeft().render(progress.tasks[0]).plain.endswith("left") is says
