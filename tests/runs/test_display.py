"""The display of many runs keeps the last word of each."""

from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from isoloss import experiments
from isoloss.progress import TimeLeft
from isoloss.runs.display import Display
from isoloss.runs.settings import walk_settings
from isoloss.runs.walk import News, WalkRun

ROW = {"evaluations": 7, "regularizer": 3.5, "angle_degrees": 120.0, "test_loss": 0.25}


def shown(*news):
    settings = walk_settings(experiments.get("IRIS_FF"), "sqp")
    runs = [WalkRun(k, 10 + k, Path(f"run-{k:03d}"), settings) for k in range(2)]
    display = Display("IRIS_FF sqp", runs, None)
    with display:
        for one in news:
            display.show(one)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(display.summary())
    return display, capture.get()


def test_the_summary_has_a_line_per_run():
    _, text = shown(News(0, "walking", 3, ROW), News(0, "done", 5, ROW, "converged"))
    assert "run-000" in text
    assert "converged" in text
    assert "0.25" in text
    assert "not started" in text


def test_news_that_arrives_late_does_not_undo_the_end():
    _, text = shown(News(0, "done", 5, ROW, "converged"), News(0, "walking", 4, ROW))
    assert "converged" in text
    assert "walking" not in text


def test_failures_are_named_with_their_reason():
    display, text = shown(News(1, "done", ending="no memory", failed=True))
    assert display.failures == ["run-001: no memory"]
    assert "failed" in text


def test_the_last_word_of_a_run_without_numbers_is_said_once(capsys):
    shown(News(0, "done", ending="interrupted"), News(1, "done", ending="no memory", failed=True))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "IRIS_FF sqp run-000 interrupted",
        "IRIS_FF sqp run-001 failed: no memory",
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
