"""What is made once for all processes that run the tests."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Any:
    """What `make` of a new folder gives, in the first process that asks; to be read only.

    What it gives is pickled. The name must be that of one `make`.
    """
    common = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # which has a folder of its own below that of all
        common = common.parent
    kept = common / f"{name}.pickle"
    with FileLock(common / f"{name}.lock"):
        if not kept.exists():
            kept.write_bytes(pickle.dumps(make(Path(tempfile.mkdtemp(prefix=name, dir=common)))))
        return pickle.loads(kept.read_bytes())
