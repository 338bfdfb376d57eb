"""Fetching and verifying, with a table of files whose home is a server on this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pooch
import pytest
from rich.progress import Progress, TaskID
from tests.experiments.datasets.conftest import Server
from tests.experiments.datasets.made import described, placed

from isoloss.errors import InputError
from isoloss.experiments.datasets import DataError, at_hand, download, fetch, files, resume, verify

CONTENT = np.random.default_rng(1).bytes(50_000)
Toy = Callable[..., files.DataFile]


@pytest.fixture
def toy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """Puts the data set `toy` of one file into the table, at home where the arguments say."""
    server.content = CONTENT
    monkeypatch.setattr(download, "TIMEOUT", 1.0)

    def describe(*ways: str) -> files.DataFile:
        file = described("toy/file.gz", CONTENT, *(server.url(how) for how in ways))
        monkeypatch.setitem(files.FORMS, "toy", ((file,),))
        return file

    return describe


def test_fetches_to_the_cache_once(toy: Toy, server: Server, cache: Path) -> None:
    toy("good")
    assert at_hand("toy") is False
    [before] = verify("toy")
    assert (before.state, before.where, before.size) == ("missing", None, None)
    [report] = fetch("toy")
    assert at_hand("toy") is True
    assert verify("toy") == [report]
    assert (report.state, report.where) == ("present", cache / "toy/file.gz")
    assert report.size == len(CONTENT)
    assert (cache / "toy/file.gz").read_bytes() == CONTENT
    fetch("toy")
    assert len(server.asked) == 1
    assert {path.name for path in (cache / "toy").iterdir()} <= {"file.gz", "file.gz.lock"}


def test_a_file_of_the_users_is_not_downloaded(toy: Toy, server: Server, own: Path) -> None:
    toy("good")
    placed(own, {"toy/file.gz": CONTENT})
    assert fetch("toy")[0].where == own / "toy/file.gz"
    assert server.asked == []


@pytest.mark.parametrize("first", ["missing", "wrong", "cut", "stall", "page"])
def test_a_mirror_stands_in(toy: Toy, server: Server, first: str) -> None:
    toy(first, "good")
    assert fetch("toy")[0].state == "present"
    assert [how for how, _ in server.asked] == [first, "good"]


def test_a_wrong_file_is_never_placed(toy: Toy, cache: Path) -> None:
    toy("wrong")
    with pytest.raises(DataError, match="its SHA-256 differs from the published one"):
        fetch("toy")
    assert {path.name for path in (cache / "toy").iterdir()} <= {"file.gz.lock"}


def test_what_came_is_kept_and_continued(toy: Toy, server: Server, cache: Path) -> None:
    toy("cut")
    with pytest.raises(DataError, match=r"try again \(25000 of 50000 bytes are kept\)"):
        fetch("toy")
    assert not (cache / "toy/file.gz").exists()
    toy("good")
    fetch("toy")
    assert server.asked == [("cut", None), ("good", "bytes=25000-")]
    assert (cache / "toy/file.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("before", [None, b"damaged"])
def test_an_interrupted_download_places_nothing(
    toy: Toy, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    toy("good")
    target = cache / "toy/file.gz"
    if before is not None:
        placed(cache, {"toy/file.gz": before})

    def at_target() -> bytes | None:
        return target.read_bytes() if target.exists() else None

    seen: list[bytes | None] = []

    def update(progress: Progress, task: TaskID, *, completed: int) -> None:
        seen.append(at_target())
        if completed > len(CONTENT) // 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(resume, "_CHUNK", 4096)
        during.setattr(Progress, "update", update)
        with pytest.raises(KeyboardInterrupt):
            fetch("toy")
    assert set(seen) == {before}
    assert at_target() == before
    kept = (cache / "toy/file.gz.part").stat().st_size
    assert len(CONTENT) // 2 < kept < len(CONTENT)
    fetch("toy")
    assert server.asked == [("good", None), ("good", f"bytes={kept}-")]
    assert at_target() == CONTENT


def test_a_file_is_compared_before_it_is_placed_and_placed_in_one_step(
    toy: Toy, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy("good")
    target = cache / "toy/file.gz"
    steps: list[tuple[str, bool]] = []

    def watch(module: object, name: str) -> None:
        original = getattr(module, name)

        def watched(*arguments: object, **named: object) -> object:
            existed = target.exists()
            result = original(*arguments, **named)
            if str(target) in map(str, arguments) and existed != target.exists():
                steps.append((name, target.read_bytes() == CONTENT))
            assert existed or not target.exists() or steps
            return result

        monkeypatch.setattr(module, name, watched)

    watch(os, "rename")
    watch(os, "replace")
    watch(pooch.core, "hash_matches")
    fetch("toy")
    assert steps == [("rename", True)]


@pytest.mark.parametrize("length", [100, 50_000, 60_000])
def test_a_part_of_something_else_does_not_last(
    toy: Toy, server: Server, cache: Path, length: int
) -> None:
    toy("good")
    placed(cache, {"toy/file.gz.part": b"x" * length})
    assert fetch("toy")[0].state == "present"
    assert server.asked[-1] == ("good", None)


def test_being_offline_is_one_sentence(toy: Toy, server: Server, own: Path, cache: Path) -> None:
    unused = Server()
    unused.server_close()
    file = described("toy/file.gz", CONTENT, unused.url("a"), unused.url("b"))
    toy()
    files.FORMS["toy"] = ((file,),)
    with pytest.raises(DataError) as caught:
        fetch("toy")
    sentence = str(caught.value)
    for part in ("toy/file.gz", str(own), str(cache), unused.url("a"), unused.url("b"), "refused"):
        assert part in sentence
    assert sentence.endswith(
        "connect to the internet and try again, or place the file there yourself"
    )
    assert "\n" not in sentence


def test_a_damaged_file_in_the_cache_is_replaced(toy: Toy, cache: Path) -> None:
    toy("good")
    placed(cache, {"toy/file.gz": CONTENT[:-1] + b"?"})
    [report] = verify("toy")
    assert report.state == "damaged"
    assert report.where == cache / "toy/file.gz"
    assert "SHA-256" in report.problem
    assert fetch("toy")[0].state == "present"


def test_a_damaged_file_of_the_users_is_left_alone(toy: Toy, server: Server, own: Path) -> None:
    toy("good")
    placed(own, {"toy/file.gz": b"mine"})
    with pytest.raises(DataError, match="it has 4 bytes instead of 50000; delete it, then run"):
        fetch("toy")
    assert (own / "toy/file.gz").read_bytes() == b"mine"
    assert server.asked == []


def test_runs_side_by_side_download_once(toy: Toy, server: Server) -> None:
    toy("slow")
    problems: list[BaseException] = []

    def run() -> None:
        try:
            fetch("toy")
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(server.asked) == 1


def test_a_wait_without_end_has_one(toy: Toy, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy("good")
    monkeypatch.setattr(download, "_LONGEST_WAIT", 0.1)
    (cache / "toy").mkdir(parents=True)
    with (
        download.FileLock(str(cache / "toy/file.gz.lock")),
        pytest.raises(DataError, match="being downloaded by another process"),
    ):
        fetch("toy")


def test_a_cache_that_cannot_be_written_is_named(toy: Toy, cache: Path) -> None:
    toy("good")
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in the way")
    with pytest.raises(DataError, match=r"toy/file.gz cannot be .*: Not a directory|exists"):
        fetch("toy")


def test_an_unknown_name_is_answered() -> None:
    for ask in (fetch, verify, at_hand):
        with pytest.raises(InputError, match="unknown data set 'mnits'; did you mean mnist"):
            ask("mnits")


def test_iris_has_no_files() -> None:
    assert verify("iris") == []
    assert fetch("iris") == []


def test_cifar10_is_reported_in_the_form_that_is_there(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["cifar10/data_batch_1", "cifar10/test_batch"]
    batches = placed(own, {name: name.encode() for name in names})
    archive = described("cifar10/cifar-10-python.tar.gz", b"archive", "http://127.0.0.1:1/a")
    monkeypatch.setitem(files.FORMS, "cifar10", (batches, (archive,)))

    def states() -> list[tuple[str, str]]:
        return [(Path(report.file.path).name, report.state) for report in verify("cifar10")]

    assert states() == [("data_batch_1", "present"), ("test_batch", "present")]
    (own / names[0]).write_bytes(b"damaged")
    assert states() == [("data_batch_1", "damaged"), ("test_batch", "present")]
    (own / names[0]).unlink()
    assert states() == [("data_batch_1", "missing"), ("test_batch", "present")]
    placed(own, {archive.path: b"archive"})
    assert states() == [("cifar-10-python.tar.gz", "present")]
    for path in (own / names[1], own / archive.path):
        path.unlink()
    assert states() == [("cifar-10-python.tar.gz", "missing")]
