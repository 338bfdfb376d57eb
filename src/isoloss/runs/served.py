"""Loaded by the server that forks processes, and by it alone: it holds signals, they need not.

It is started with signals held, since one that reaches all processes would end it, and each
process that it forks begins so. Runs handle them; the processes of whoever called isoloss, who
may use the same server, are to be as if it had been started without.
"""

from __future__ import annotations

import signal
from multiprocessing import current_process, util

from isoloss.runs.pool import RUNS, STOPPING


def let_through(_: object) -> None:
    """Hold no signals in a process that is not isoloss's; it has been unpickled, but not begun."""
    if current_process().name != RUNS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


util.register_after_fork(let_through, let_through)
