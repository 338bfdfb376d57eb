"""A process each: what one may suffer without harm to the others, and how all are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from isoloss.runs.pool import run_all
from isoloss.runs.run import Contact, News, Run
from isoloss.store.folder import problem

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")


@dataclass(frozen=True)
class Made:
    """Settings of a run that does what a test says."""

    does: str

    def config(self, seed: int) -> dict[str, Any]:
        return {"does": self.does, "seed": seed}


class Toy(Run):
    """A run whose process ends in many ways; it says its process' id with its first news."""

    settings: Made
    total = None
    shared = None

    def finished_before(self):
        return News(self.index, "done", ending="finished")

    def _work(self, contact: Contact) -> News:
        import torch

        facts: dict[str, Any] = {"pid": os.getpid(), "torch": torch.get_num_threads()}
        facts["folder"] = str(Path.cwd())
        facts["openblas"] = os.environ["OPENBLAS_NUM_THREADS"]
        facts["told"] = os.environ.get("ISOLOSS_TOLD")
        contact.tell("training", row=facts)
        does = self.settings.does
        if does.isdigit():
            os.kill(os.getpid(), int(does))
        elif does == "exits":
            os._exit(3)
        elif does == "raises":
            raise ValueError("[red]brackets[/red] and [/nonsense]")
        elif does == "waits":
            deadline = time.monotonic() + 20
            while not contact.tell("walking", 1):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return News(self.index, "done", 1, ending="interrupted")
        elif does == "keeps nothing":
            with contact.keeping_nothing():
                time.sleep(600)
        elif does == "hangs":
            time.sleep(600)
        return News(self.index, "done", 1, ending="finished")


class Shared(Toy):
    """One that shares a device."""

    shared = "cuda"


def toys(folder: Path, *what: str, kind: type[Toy] = Toy) -> list[Toy]:
    return [kind(k, k, folder / f"run-{k:03d}", Made(does)) for k, does in enumerate(what)]


def go(runs: list[Toy], when: Callable[[News], None] = lambda news: None) -> tuple[int, Any]:
    told: list[News] = []

    def show(news: News) -> None:
        told.append(news)
        when(news)

    code = run_all(runs, show)
    lasts = {news.index: news for news in told if news.phase == "done"}
    assert len(lasts) == sum(news.phase == "done" for news in told)
    return code, lasts


@pytest.mark.slow
def test_a_process_that_dies_is_a_sentence_and_the_others_go_on(tmp_path: Path) -> None:
    runs = toys(tmp_path, str(int(signal.SIGKILL)), "", str(int(signal.SIGSEGV)), "exits", "raises")
    code, lasts = go(runs)
    assert code == 0
    assert [lasts[k].failed for k in range(5)] == [True, False, True, True, True]
    assert "killed by SIGKILL, perhaps because memory ran out; run the same" in lasts[0].ending
    assert "killed by SIGSEGV; run the same command again" in lasts[2].ending
    assert "ended with exit code 3; run" in lasts[3].ending
    assert lasts[4].ending == "ValueError: [red]brackets[/red] and [/nonsense]"
    for one in runs:
        last = lasts[one.index]
        assert problem(one.folder) == (last.ending if last.failed else "not finished")


@pytest.mark.slow
def test_runs_that_share_a_device_share_a_process_and_its_death(tmp_path: Path) -> None:
    pids: dict[int, int] = {}

    def when(news: News) -> None:
        if news.row:
            pids[news.index] = news.row["pid"]

    runs = toys(tmp_path, "", "raises", "", "exits", "", kind=Shared)
    code, lasts = go(runs, when)
    assert code == 0
    assert len(set(pids.values())) == 1
    assert [lasts[k].failed for k in range(5)] == [False, True, False, True, True]
    for k in (3, 4):
        assert "ended with exit code 3; run the same command again" in lasts[k].ending


@pytest.mark.slow
def test_a_signal_stops_all_that_share_a_process(tmp_path: Path) -> None:
    def when(news: News) -> None:
        if news.phase == "walking":
            os.kill(os.getpid(), signal.SIGTERM)

    code, lasts = go(toys(tmp_path, "waits", "waits", kind=Shared), when)
    assert code == 143
    assert [lasts[k].interrupted for k in range(2)] == [True, True]


@pytest.mark.slow
def test_a_run_has_one_thread_however_many_there_are_outside(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    seen: list[Any] = []
    go(toys(tmp_path, ""), lambda news: seen.append(news.row))
    assert (seen[0]["torch"], seen[0]["openblas"]) == (1, "1")
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


@pytest.mark.slow
def test_a_run_has_the_folder_and_the_variables_of_its_command_not_of_one_before(
    tmp_path, monkeypatch
) -> None:
    for told in ("1", "2", None):
        if told:
            monkeypatch.setenv("ISOLOSS_TOLD", told)
        else:
            monkeypatch.delenv("ISOLOSS_TOLD")
        folder = tmp_path / str(told)
        folder.mkdir()
        monkeypatch.chdir(folder)
        seen: list[Any] = []
        go(toys(folder, ""), lambda news, seen=seen: seen.append(news.row))
        assert (seen[0]["told"], seen[0]["folder"]) == (told, str(folder))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_all_keep_their_step_and_starts_no_more(tmp_path, number, code) -> None:
    begun: set[int] = set()

    def when(news: News) -> None:
        if news.phase == "walking":
            os.kill(os.getpid(), number)
        begun.add(news.index)

    before = signal.getsignal(number)
    ended, lasts = go(toys(tmp_path, *["waits"] * 30), when)
    assert ended == code
    assert lasts.keys() == begun
    assert len(begun) < 30
    assert all(news.interrupted for news in lasts.values())
    assert signal.getsignal(number) is before


@pytest.mark.slow
def test_one_that_is_terminated_alone_stops_the_others_too(tmp_path: Path) -> None:
    def when(news: News) -> None:
        if news.phase == "training" and news.index == 0:
            os.kill(news.row["pid"], signal.SIGTERM)

    code, lasts = go(toys(tmp_path, "waits", "waits"), when)
    assert code == 143
    assert all(news.interrupted for news in lasts.values())


@pytest.mark.slow
def test_ctrl_c_a_second_time_does_not_wait(tmp_path: Path) -> None:
    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def when(news: News) -> None:
        if news.phase == "training":
            press()
            time.sleep(1.2)
            press()

    began = time.monotonic()
    code, lasts = go(toys(tmp_path, "hangs"), when)
    assert time.monotonic() - began < 300
    assert code == 130
    assert "second Ctrl-C" in lasts[0].ending


@pytest.mark.slow
def test_a_signal_ends_at_once_what_keeps_nothing(tmp_path: Path) -> None:
    def when(news: News) -> None:
        if news.phase == "training":
            os.kill(os.getpid(), signal.SIGINT)

    code, lasts = go(toys(tmp_path, "keeps nothing"), when)
    assert code == 130
    assert lasts[0].interrupted


ALONE = """
import multiprocessing, signal, sys
from pathlib import Path
from isoloss.runs.pool import run_all
from tests.runs.test_pool import toys
if __name__ == "__main__":
    run_all(toys(Path(sys.argv[1]), {does!r}), lambda news: print(news.row["pid"], flush=True)
        if news.phase == "training" else None)
"""


def alone(
    tmp_path: Path, does: str = "waits", then: str = "", **variables: str
) -> subprocess.Popen[str]:
    """A command with a run, and what comes after it."""
    script = tmp_path / "alone.py"
    script.write_text(ALONE.format(does=does) + then)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    command = [sys.executable, str(script), str(tmp_path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_run_ends_with_its_dead_parent(tmp_path: Path) -> None:
    with alone(tmp_path) as parent:
        assert int(parent.stdout.readline())
        parent.kill()
        assert parent.stdout.read() == ""  # comes once the run's process, too, has let go of it
    assert problem(tmp_path / "run-000") == "not finished"  # it was told to stop, and did not fail


@pytest.mark.slow
def test_no_folder_for_temporary_files_is_needed(tmp_path: Path) -> None:
    """A socket in one with so long a path has no name."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    with alone(tmp_path, TMPDIR=str(folder)) as parent:
        assert int(parent.stdout.readline())
        parent.terminate()
        assert parent.wait() == 0


AND_ONE_OF_ITS_OWN = """
    own = multiprocessing.get_context("forkserver").Process(
        target=signal.raise_signal, args=(signal.SIGTERM,))
    own.start()
    own.join()
    print(signal.Signals(-own.exitcode).name)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no server forks the runs")
def test_the_processes_of_whoever_called_isoloss_hold_no_signals(tmp_path: Path) -> None:
    with alone(tmp_path, "", AND_ONE_OF_ITS_OWN) as parent:
        assert parent.stdout.read().split()[1:] == ["SIGTERM"]
