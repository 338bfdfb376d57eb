"""Functions that several processes of a gloo group run at once, for tests."""

from __future__ import annotations

import multiprocessing as mp
import os
import sys
import uuid
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

SECONDS = 90
"""Seconds in which all of them have to be through."""
PRELOADED = [
    "torch.distributed", "torch.fx.experimental.symbolic_shapes", "scipy.optimize", "pytest",
    "pandas", "pyarrow.pandas_compat", "isoloss.walking", "isoloss.store", "isoloss.progress",
]  # fmt: skip
"""What is loaded once for all of them."""


def on_ranks(
    count: int, work: Callable[..., Any], *args: Any, folder: Path, answer: int = 10
) -> list[Any]:
    """What a function of (rank, ranks, *args) gives on each rank: where it raises, the error's
    text; None where it is killed. A rank has so many seconds to answer another one."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store = str(folder / f"store-{uuid.uuid4().hex}")
    pipes, processes = [], []
    for rank in range(count):
        here, there = context.Pipe(duplex=False)
        process = context.Process(
            target=_run, args=(there, store, rank, count, answer, work, args), daemon=True
        )
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    try:
        return [_received(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.join(SECONDS)
            if process.is_alive():
                process.kill()


def _received(pipe: Connection) -> Any:
    assert pipe.poll(SECONDS), "a rank hangs"
    try:
        return pipe.recv()
    except EOFError:
        return None


def _run(
    pipe: Connection,
    store: str,
    rank: int,
    count: int,
    answer: int,
    work: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as quiet:  # noqa: PTH123  # of gloo's own notes
        os.dup2(quiet.fileno(), sys.stderr.fileno())
    wait = timedelta(seconds=answer)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=wait
    )
    try:
        found = work(rank, count, *args)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    pipe.send(found)
