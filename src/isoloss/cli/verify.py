"""`isoloss verify`."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path as FilePath
from typing import Annotated

import typer
from rich.markup import escape

from isoloss.cli.output import console, table
from isoloss.report.verify import NOT_FINISHED
from isoloss.report.verify import verify as check_results

Folder = Annotated[
    FilePath, typer.Argument(metavar="FOLDER", help="A results folder, or any folder in it.")
]


def verify(folder: Folder = FilePath("results")) -> None:
    """Check every file and number of results again, in float64.

    Files are held against their checksums; loss, regularizer and test figures are computed anew
    from the stored weights alone, and tables are made again. Exits with 1 if anything is wrong.
    """
    checks = check_results(folder)
    for run, of_run in groupby(checks, lambda check: check.run):
        console.print(f"\n{escape(run)}", soft_wrap=True)
        shown = table("  checked (how many)", "worst>", "allowed>", "verdict")
        for check in of_run:
            verdict = "[red]WRONG[/red]" if check.problem else "right" if check.allowed else ""
            shown.add_row(f"  {check.what}", check.found, check.allowed, verdict)
        console.print(shown)
    console.print()
    wrong = [check for check in checks if check.problem]
    for check in wrong:
        sentence = f"{escape(check.run)}: {escape(check.problem)}"
        console.print(f"[red]wrong:[/red] {sentence}", soft_wrap=True)
    runs = len({check.run for check in checks})
    if wrong:
        console.print(f"{len({check.run for check in wrong})} of {runs} are not right.")
        raise typer.Exit(1)
    unfinished = sum(check.found == NOT_FINISHED for check in checks)
    also = f"; {unfinished} are not finished and were not checked" if unfinished else ""
    console.print(f"All {runs - unfinished} are right{also}.")
