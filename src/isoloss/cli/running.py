"""Doing those of many runs that are not finished."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.markup import escape

from isoloss.cli.output import console
from isoloss.runs import signals
from isoloss.runs.claim import put_aside
from isoloss.runs.decay import DecayRun
from isoloss.runs.display import Display
from isoloss.runs.pool import run_all
from isoloss.runs.walk import WalkRun
from isoloss.subject import Subject


def run_unfinished(
    title: str,
    subject: Subject,
    planned: Sequence[WalkRun] | Sequence[DecayRun],
    steps: int | None,
    *,
    restart: bool = False,
) -> None:
    """Do the runs that are not finished, and print their summary.

    Args:
        title: What is going on.
        subject: What the runs are of; what it needs is fetched.
        planned: All runs.
        steps: Steps of a run; None where it ends when it has converged.
        restart: Move what there is of these runs aside and begin anew.

    Raises:
        Exit: A run failed (1), Ctrl-C was pressed (130), or SIGTERM came (143).
    """
    if restart:
        for one in planned:
            moved = put_aside(one.folder)
            if moved is not None:
                console.print(f"{one.folder} is now {moved}", soft_wrap=True)
    subject.prepare()
    todo = [one for one in planned if not one.finished()]
    finished = len(planned) - len(todo)
    if finished:
        console.print(f"{title}: {finished} of {len(planned)} runs are finished already.")
    if not todo:
        return
    with Display(title, todo, steps) as display:
        whole = run_all(todo, display.show)
    console.print(display.summary())
    for sentence in display.notes:
        console.print(f"[yellow]note:[/yellow] {escape(sentence)}", soft_wrap=True)
    for sentence in display.failures:
        console.print(f"[red]failed:[/red] {escape(sentence)}", soft_wrap=True)
    if not whole:
        console.print("Interrupted; call the same command again to go on.")
        raise typer.Exit(signals.exit_code())
    if display.failures:
        raise typer.Exit(1)
