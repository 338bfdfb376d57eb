"""Jobs over the cores: the results of a plain loop, whatever happens to a process."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch import nn

from isoloss import IsolossError, Problem
from isoloss.explore import cores
from isoloss.explore.cores import FEW, over_cores, workers_for


def test_one_worker_is_a_loop_in_this_process() -> None:
    here = os.getpid()
    found = list(over_cores(lambda job, _: (os.getpid() == here, job**2), range(4), workers=1))
    assert found == [(k, (True, k**2)) for k in range(4)]


def test_a_few_jobs_are_done_in_this_process() -> None:
    assert workers_for(FEW) == 1
    assert 1 <= workers_for(1000) <= (os.cpu_count() or 1)
    assert workers_for(3, 8) == 3


def test_a_number_of_workers_that_is_none_is_refused(refuses) -> None:
    for bad in (0, -1, 1.5, "2"):
        with refuses("workers", "whole number"):
            list(over_cores(lambda job, _: job, [1, 2], workers=bad))  # pyright: ignore


@pytest.mark.slow
def test_models_defined_on_the_spot_are_evaluated_elsewhere() -> None:
    names = {"nn": nn}  # as in a notebook, whose module other processes cannot import
    exec("class Net(nn.Linear):\n    def forward(self, x): return super().forward(x).tanh()", names)
    torch.manual_seed(0)
    data = (torch.randn(20, 3), torch.randn(20, 1))
    problem = Problem(names["Net"](3, 1), "mse", data)  # pyright: ignore
    starts = [problem.current() + k for k in range(5)]
    home = os.getpid()

    def work(job: torch.Tensor, _: Callable[[], bool]) -> tuple[int, int, torch.Tensor]:
        return os.getpid(), torch.get_num_threads(), problem.loss_and_grad(job)[1]

    found = dict(over_cores(work, starts, workers=2))
    assert sorted(found) == list(range(5))
    for k, (process, threads, grad) in found.items():
        assert process != home
        assert threads == 1
        assert torch.equal(grad, problem.loss_and_grad(starts[k])[1])


@pytest.mark.slow
def test_warnings_and_errors_are_those_of_this_process() -> None:
    def work(job: int, _: Callable[[], bool]) -> int:
        warnings.warn(f"beware of {job}", RuntimeWarning, stacklevel=1)
        return job

    with pytest.warns(RuntimeWarning, match="beware of [01]"):
        assert sorted(over_cores(work, [0, 1], workers=2)) == [(0, 0), (1, 1)]
    with pytest.raises(RuntimeWarning, match="beware of"):  # an error, as everywhere in the tests
        list(over_cores(work, [0, 1], workers=2))


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_and_what_is_done_is_kept(refuses, tmp_path: Path) -> None:
    def work(job: int, _: Callable[[], bool]) -> int:
        if job < 3:
            (tmp_path / str(job)).touch()
            return job
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.01)
        time.sleep(1)  # until the others are told of
        os.kill(os.getpid(), signal.SIGKILL)
        return job

    kept: list[int] = []
    with refuses("worker process died (SIGKILL", "fewer workers=", error=IsolossError):
        kept.extend(done for _, done in over_cores(work, [0, 1, 2, 3], workers=2))
    assert sorted(kept) == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_what_is_under_way_and_begins_nothing(workers: int, tmp_path: Path) -> None:
    def work(job: int, stopping: Callable[[], bool]) -> str:
        (tmp_path / str(job)).touch()
        if job == 0:
            return "done"
        for _ in range(3000):
            if stopping():
                return "stopped"
            time.sleep(0.02)
        return "never stopped"

    def press() -> None:
        while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    presser = threading.Thread(target=press)
    presser.start()
    found: dict[int, str] = {}

    def gather() -> None:
        for k, result in over_cores(work, range(9), workers=workers):
            found[k] = result  # noqa: PERF403  # what came before Ctrl-C counts

    with pytest.raises(KeyboardInterrupt):
        gather()
    presser.join()
    assert found[0] == "done"
    assert found[1] == "stopped"
    begun = {int(file.name) for file in tmp_path.iterdir()}
    assert begun == set(found)
    assert len(begun) <= 2 * workers
    assert signal.getsignal(signal.SIGINT) is before


def test_what_cannot_be_sent_is_refused(refuses) -> None:
    lock = threading.Lock()
    with refuses("cannot be sent to another process", "workers=1"):
        list(over_cores(lambda job, _: lock.locked(), [1, 2], workers=2))


def test_a_slice_is_sent_without_the_rest() -> None:
    whole = torch.randn(1000, 100)
    slices = [whole[k : k + 1] for k in range(50)]
    packed = cores._packed(lambda job, _: slices[job])
    assert 50 * 400 < len(packed) < 100 * 1000
    work = cloudpickle.loads(packed)
    assert all(torch.equal(work(k, None), slices[k]) for k in range(50))
