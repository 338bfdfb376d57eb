"""The commands, thin: each checks what it was given, calls the library, and prints.

What computes is imported inside of them, so that help and version answer without loading torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from isoloss import __version__
from isoloss.cli import experiments, reports, runs
from isoloss.cli.options import complain, errors, say
from isoloss.errors import InputError, IsolossError
from isoloss.runs.pool import Terminated, sigterm_raises

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode=None,
)  # fmt: skip
app.add_typer(experiments.data, name="data")
for command in (
    experiments.experiments, runs.traverse, runs.decay, runs.compare, runs.front,
    reports.report,
    runs.reproduce, reports.verify, reports.check, reports.new,
):  # fmt: skip
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"isoloss {__version__}")
        raise typer.Exit


@app.callback()
def top(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Walk the level sets of a neural network's training loss."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's error is one sentence on standard error.

    Exit codes: 0, 1 a run or a file failed, 2 a wrong argument, 130 Ctrl-C, 143 SIGTERM.
    """
    try:
        with sigterm_raises():
            app(arguments)
    except IsolossError as error:
        complain(error)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except OSError as error:
        from isoloss.disk import sentence_of

        if (sentence := sentence_of(error)) is None:
            raise
        say(sentence, "isoloss:", "red", errors)
        sys.exit(1)
    except Terminated:
        sys.exit(143)
