"""`isoloss report`, `isoloss verify`, `isoloss check`, `isoloss new`."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path as FilePath

import typer

from isoloss.cli import options
from isoloss.cli.options import complain, console, say, show, table
from isoloss.errors import InputError, IsolossError


def report(name: options.Reported, out: options.Out = options.RESULTS) -> None:
    """Write the figures, the tables and the page of results."""
    from isoloss.store import open_results

    names = list(dict.fromkeys(name))
    if "all" in names:
        names = open_results(out).experiments()
        if not names:
            raise InputError(f"{out} holds no results; make some with 'isoloss reproduce NAME'")
    failed: list[IsolossError] = []
    for one in names:  # what cannot be reported is no reason to leave out the others
        try:
            _report(one, out)
        except IsolossError as error:
            failed.append(error)
    for error in failed[:-1]:
        complain(error)
    if failed:
        raise failed[-1]


def _reported(name: str, out: FilePath) -> str:
    """The name of the folder whose results are meant."""
    from isoloss import experiments
    from isoloss.projects import Project, is_project
    from isoloss.store import open_results

    if is_project(name):
        project, there = Project.named(name).name, out.is_dir()
        if not there or project not in open_results(out).experiments():
            lacks = f"{out} holds no walk of {name}" if there else f"there is no folder {out}"
            raise InputError(f"{lacks}; make one with 'isoloss traverse {name} --out {out}'")
        return project
    return experiments.get(name).name if not out.is_dir() else name


def _report(given: str, out: FilePath) -> None:
    from isoloss.projects import is_project
    from isoloss.report import report as write
    from isoloss.store import called, open_results

    name = _reported(given, out)
    told = called(out, name) if is_project(given) else given  # without the folder of its file

    def as_given(sentence: str) -> str:
        return sentence.replace(f"traverse {told}", f"traverse {given}")

    try:
        written = write(open_results(out), name)
    except IsolossError as error:
        error.args = (as_given(str(error)),)
        raise
    if written.table:
        say(f"\n{name}: mean ± standard deviation over the runs\n\n{written.table}")
    for sentence in written.missing:
        say(f"not included: {as_given(sentence)}")
    folder = written.tables[0].parent
    say(f"{len(written.figures)} files of figures and {len(written.tables)} of tables in {folder}")
    say(f"page  {written.page}")


def verify(folder: options.Folder = options.RESULTS) -> None:
    """Check every file and number of results again, in float64.

    Files are compared with their checksums; loss, regularizer and test figures are computed again
    from the stored weights alone, and tables are made again. Exits with 1 if anything is wrong.
    """
    from isoloss.report.verify import NOT_DONE, NOT_FINISHED, STRAY
    from isoloss.report.verify import verify as check_results

    checks = check_results(folder)
    for run, of_run in groupby(checks, lambda check: check.run):
        say(f"\n{run}")
        shown = table("  checked (how many)", "worst>", "allowed>", "verdict")
        for check in of_run:
            verdict = "WRONG" if check.problem else "right" if check.allowed else ""
            style = "red" if check.problem else None
            shown.add_row(f"  {check.what}", check.found, check.allowed, verdict, style=style)
        show(shown)
    console.print()
    wrong = [check for check in checks if check.problem]
    for check in wrong:
        say(f"{check.run}: {check.problem}", "wrong:", "red")
    runs = len({check.run for check in checks})
    if wrong:
        say(f"{len({check.run for check in wrong})} of {runs} are not right.")
        raise typer.Exit(1)
    counts = {
        "are not finished and were not checked": [c for c in checks if c.found == NOT_FINISHED],
        "are not named as runs and were not checked": [c for c in checks if STRAY in c.found],
    }
    checked = runs - sum(map(len, counts.values()))
    also = "".join(f"; {len(some)} {words}" for words, some in counts.items() if some)
    if some := [check for check in checks if check.found.startswith(NOT_DONE)]:
        also += f"; of {len(some)} what needs the data was not computed again"
    say(f"All {checked} are right{also}.")


def check(
    name: options.Walked,
    seed: options.Seed = 0,
    regularizer: options.Regularizer = "squared_norm",
    device: options.Device = "auto",
) -> None:
    """Find out whether a loss is fit to be walked.

    Prints a table that can be pasted into a bug report; exits with 1 if something failed.
    """
    from isoloss.checking.check import check as check_problem
    from isoloss.data import random_state_kept
    from isoloss.walking import checked_probes

    subject, target = options.subject(name, device)
    subject.prepare()
    with random_state_kept():
        start = subject.start(seed, device=target, dtype=None)
        checked_probes(start.probes, start.problem)
        found = check_problem(start.problem, regularizer)
    typer.echo(str(found))
    if not found.passed:
        raise typer.Exit(1)


def template() -> str:
    """A project's file to begin with, which runs as it is."""
    return FilePath(__file__).with_name("template.py").read_text(encoding="utf-8")


def new() -> None:
    """Print a file to start from: isoloss new > my_project.py."""
    typer.echo(template(), nl=False)
