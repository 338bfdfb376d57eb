"""All commands together, and what becomes of their errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from isoloss._version import __version__
from isoloss.cli import compares, data, decays, projects, reports, verify, walks
from isoloss.cli.output import console
from isoloss.errors import InputError, IsolossError
from isoloss.files import sentence_of
from isoloss.runs import signals

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Walk the level sets of a neural network's training loss.",
)
app.command("experiments")(data.list_experiments)
app.add_typer(data.data, name="data")
app.command("traverse")(walks.traverse)
app.command("check")(projects.check)
app.command("new")(projects.new)
app.command("decay")(decays.decay)
app.command("compare")(compares.compare)
app.command("report")(reports.report)
app.command("reproduce")(reports.reproduce)
app.command("verify")(verify.verify)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"isoloss {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Walk the level sets of a neural network's training loss."""
    del version


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's error is one sentence on standard error.

    Exit codes: 0 done, 1 a run failed or files cannot be read or written, 2 a wrong argument, 130
    Ctrl-C, 143 SIGTERM.

    Args:
        arguments: As after the command's name; None takes those of the process.
    """
    try:
        with signals.sigterm_interrupts():
            app(arguments, standalone_mode=True)
    except IsolossError as error:
        _say(str(error))
        sys.exit(2 if isinstance(error, InputError) else 1)
    except OSError as error:
        if (sentence := sentence_of(error)) is None:
            raise
        _say(sentence)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(signals.exit_code())


def _say(sentence: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[red]isoloss:[/red] {escape(sentence)}"
    )
