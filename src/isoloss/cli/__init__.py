"""The commands, thin: each checks what it was given, calls the library, and prints.

One file per group of commands; `app.py` puts them together, `options.py` holds what they share.
"""

from isoloss.cli.app import main

__all__ = ["main"]
