"""The command `isoloss`, also `python -m isoloss`, and Ctrl-C while it is being loaded."""

import os
import signal
import sys
from types import FrameType

IMPORTING = "<frozen importlib._bootstrap>"
"""The file of a frame that is there as long as a module is being imported."""


def pressed(_: int, frame: FrameType | None) -> None:
    """Ctrl-C raises KeyboardInterrupt, but in an import, where libraries may swallow that, ends."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def main() -> None:
    """Run a command of the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, pressed)
    try:
        from isoloss.cli import main as run

        run()
    except KeyboardInterrupt:  # before or after typer's own handling of it
        sys.exit(130)


if __name__ == "__main__":
    main()
