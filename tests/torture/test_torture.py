"""The short form; the long one is `python -m tests.torture`."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.torture.corruption import of_finished, of_unfinished
from tests.torture.kills import at_every_moment
from tests.torture.received import full_disks, links, resealed
from tests.torture.victim import Findings, child, execute, in_a_child, make, result, wait
from tests.torture.writers import writers

from isoloss.store.folder import problem

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "every"), [("paper", 61), ("decay", 61), ("front", 101)])
def test_runs_killed_at_moments_of_writing_lose_no_bit(
    tmp_path: Path, kind: str, every: int
) -> None:
    found = Findings()
    at_every_moment(tmp_path, kind, every, seed=23, found=found)
    assert found.done["runs"] >= 3
    assert found.done.total() >= 2 * found.done["runs"]
    assert found.wrong == []


@pytest.mark.slow
def test_changed_files_are_noticed_and_runs_done_again(tmp_path: Path) -> None:
    found = Findings()
    of_finished(tmp_path / "finished", 60, 11, found, repair=20)
    of_unfinished(tmp_path / "unfinished", 9, 12, found)
    assert found.done["files corrupted"] >= 69
    assert found.done["runs called again with the same bits"] >= 9
    assert found.wrong == []


def test_of_eight_processes_exactly_one_writes(tmp_path: Path) -> None:
    found = writers(tmp_path, 2)
    assert (found.done["writers"], found.wrong) == (2, [])


def test_no_link_of_a_received_run_is_followed(tmp_path: Path) -> None:
    found = links(tmp_path)
    assert found.done["links"] >= 20
    assert found.wrong == []


@pytest.mark.slow
def test_numbers_that_were_changed_and_sealed_again_are_found(tmp_path: Path) -> None:
    found = resealed(tmp_path, 20, 5)
    assert found.done["numbers changed"] >= 15
    assert found.wrong == []


@pytest.mark.slow
def test_runs_on_disks_that_are_full_at_a_moment_go_on_with_the_same_bits(tmp_path: Path) -> None:
    found = full_disks(tmp_path, every=41, seed=3)
    assert found.done["full disks"] >= 9
    assert found.wrong == []


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_fails_the_run_with_a_sentence_and_it_goes_on_later(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", "sqp")
    assert in_a_child(whole) == 0
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        one = make(disk, "sqp")
        news = execute(one)
        assert news.failed
        assert "No space left on device; free some space" in news.ending
        assert problem(one.folder) == "not finished" or "No space left" in problem(one.folder)
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert not execute(one).failed
        assert problem(one.folder) is None
        assert result(one.folder) == result(whole.folder)


def test_a_folder_that_cannot_be_written_to_is_a_sentence(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        pid = child(lambda: "Read-only file system" not in said(disk))
        assert wait(pid) == 0


def said(disk: Path) -> str:
    try:
        return execute(make(disk, "paper")).ending
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_a_run_killed_after_its_last_word_is_finished_and_tidied_up(tmp_path: Path) -> None:
    one = make(tmp_path, "decay")
    assert in_a_child(one) == 0
    before = result(one.folder)
    (one.folder / "checkpoint").mkdir()  # killed before it was deleted
    assert problem(one.folder) is None
    assert not one.finished()
    assert in_a_child(one) == 0
    assert one.finished()
    assert result(one.folder) == before


def test_a_worker_that_dies_after_its_last_word_leaves_no_failure(tmp_path: Path) -> None:
    one = make(tmp_path, "sqp")
    assert in_a_child(one) == 0
    assert one.lost("its process was killed").failed
    assert one.finished()
