"""What the nodes of a cluster must share with the command whose runs they take.

Nothing here loads torch.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from tempfile import NamedTemporaryFile

from isoloss import __version__
from isoloss.disk import writing
from isoloss.errors import one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PASSED_ON = "ISOLOSS_"  # how the names of variables begin that runs get from the command


@dataclass(frozen=True)
class Place:
    """What a node must have and see to take a run."""

    folder: str  # the working directory
    locked: str  # a file on which the command holds a lock
    files: dict[str, str]  # SHA-256 of each by its path
    environment: dict[str, str]
    version: str = __version__

    @staticmethod
    @contextmanager
    def here(out: FilePath, files: Sequence[FilePath]) -> Generator[Place]:
        """As it is in this process, with a file to be seen in the folder of results."""
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            probe = NamedTemporaryFile(dir=out, prefix=".seen-by-nodes-")  # noqa: SIM115
        with probe:
            with writing(out):
                probe.write(os.urandom(32))
                probe.flush()
                os.fsync(probe.fileno())
            if fcntl is not None:
                with suppress(OSError):  # the nodes will say so
                    fcntl.flock(probe, fcntl.LOCK_EX)
            seen = [str(file.absolute()) for file in (FilePath(probe.name), *files)]
            variables = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
            stamps = {file: _digest(file) for file in seen}
            yield Place(str(FilePath.cwd()), seen[0], stamps, variables)

    def enter(self) -> str:
        """Make it so in this process; why that cannot be, empty where it can."""
        host = socket.gethostname()
        if self.version != __version__:
            return (
                f"{host} has isoloss {__version__}, and the command {self.version}; install the "
                f"same on all nodes"
            )
        unseen = [file for file, digest in self.files.items() if _digest(file) != digest]
        try:
            os.chdir(self.folder)
        except OSError:
            unseen.append(self.folder)
        if unseen:
            return (
                f"{host} does not see {unseen[0]} as the command does; call it in a folder, and "
                f"with --out and files, on a file system that all nodes share"
            )
        if why := _not_locked(self.locked):
            return (
                f"{host} does not see the command's lock on {self.locked} ({why}), and two nodes "
                f"might write to one run; mount it with locks over the network, as NFS 4 has them "
                f"and Lustre with -o flock, or give another --out"
            )
        os.environ.update(self.environment)
        return ""


def _digest(file: str) -> str:
    try:
        return hashlib.sha256(FilePath(file).read_bytes()).hexdigest()
    except OSError:
        return ""


def _not_locked(file: str) -> str:
    """Why a file is not found to be locked by another process; empty where it is."""
    if fcntl is None:
        return ""
    try:
        with open(file, "r+b") as opened:  # noqa: PTH123
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ""
    except OSError as error:
        return one_line(error)
    return "it could be locked again"
