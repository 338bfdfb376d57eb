"""Fetching, from a server on this machine that behaves or does not."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import filelock
import numpy as np
import pytest
from tests.experiments.conftest import Server
from tests.experiments.made import placed

from isoloss.experiments import download
from isoloss.experiments.datasets import DataError, at_hand, fetch, load, verify

CONTENT = np.random.default_rng(1).bytes(50_000)
PATH = "toy/file.gz"


@pytest.fixture
def toy(server, table, monkeypatch):
    """Puts the data set `toy` of one file into the table, at home where the arguments say."""
    server.content = CONTENT
    monkeypatch.setattr(download, "SILENCE", 0.5)
    monkeypatch.setattr(download, "CHUNK", 1000)
    return lambda *ways: table("toy", {PATH: CONTENT}, urls=tuple(map(server.url, ways)))


def left(cache):
    return {path.name for path in (cache / "toy").iterdir()} - {"file.gz.lock"}


def test_fetches_to_the_cache_once(toy, server, cache, capfd):
    toy("good")
    assert at_hand("toy") is False
    assert [(report.state, report.where) for report in verify("toy")] == [("missing", None)]
    [report] = fetch("toy")
    assert at_hand("toy") is True
    assert verify("toy") == [report]
    assert (report.state, report.where) == ("present", cache / PATH)
    assert (cache / PATH).read_bytes() == CONTENT
    fetch("toy")
    assert server.asked == [("good", None)]
    assert left(cache) == {"file.gz"}
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "file.gz" in shown.err


@pytest.mark.parametrize("part", [b"", CONTENT[:20_000]])
@pytest.mark.parametrize("how", ["good", "ignores_range", "unsized", "endless", "moved"])
def test_downloads_exactly_the_file_at_once(toy, server, cache, how, part):
    toy(how)
    placed(cache, {f"{PATH}.part": part})
    assert fetch("toy")[0].state == "present"
    assert [asked for asked, _ in server.asked].count(how) == 1
    assert (cache / PATH).read_bytes() == CONTENT


@pytest.mark.parametrize("first", ["404", "500", "wrong", "cut", "stall", "silent", "page"])
def test_a_mirror_stands_in(toy, server, first):
    toy(first, "good")
    assert fetch("toy")[0].state == "present"
    assert [how for how, _ in server.asked] == [first, "good"]


@pytest.mark.parametrize(
    ("how", "why", "kept"),
    [
        ("404", "HTTP status 404 Not Found", 0),
        ("500", "HTTP status 500 Internal Server Error", 0),
        ("page", "the server offers 35 bytes instead of 50000", 0),
        ("wrong", "its SHA-256 differs from the published one", 0),
        ("silent", "the server was silent for 0.5 s after 0 of 50000 bytes", 0),
        ("stall", "the server was silent for 0.5 s after 25000 of 50000 bytes", 25_000),
        ("cut", "after 25000 of 50000 bytes", 25_000),
    ],
)
def test_a_failure_is_named_and_what_came_is_kept(toy, server, cache, how, why, kept, refuses):
    toy(how)
    again = f"try again ({kept} of 50000 bytes are kept)" if kept else "try again, or place the"
    with refuses(f"{PATH} is not in {cache}", server.url(how), why, again, error=DataError):
        fetch("toy")
    assert left(cache) == ({"file.gz.part"} if kept else set())
    toy("good")
    fetch("toy")
    assert server.asked == [(how, None), ("good", f"bytes={kept}-" if kept else None)]
    assert (cache / PATH).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("headers", "the server's headers did not end in 0.6 s after 0 of 50000 bytes"),
        ("one_header", "the server's headers did not end in 0.6 s after 0 of 50000 bytes"),
        ("continues", "the server's headers did not end in 0.6 s after 0 of 50000 bytes"),
        ("body", "the file did not come in 0.7 s after"),
    ],
)
def test_what_never_ends_is_left_for_the_mirror(toy, server, monkeypatch, how, why, refuses):
    monkeypatch.setattr(download, "LONGEST_HEADERS", 0.6)
    monkeypatch.setattr(download, "LONGEST_WAIT", 0.7)
    toy(how)
    began = time.monotonic()
    with refuses(server.url(how), why, error=DataError):
        fetch("toy")
    assert time.monotonic() - began < 3
    toy(how, "good")
    assert fetch("toy")[0].state == "present"


@pytest.mark.parametrize("before", [None, CONTENT[:-1] + b"?"])
def test_an_interrupted_download_leaves_the_cache_as_it_was(
    toy, server, cache, monkeypatch, before
):
    toy("good")
    if before is not None:
        placed(cache, {PATH: before})
        assert verify("toy")[0].state == "damaged"

    def unchanged():
        return ((cache / PATH).read_bytes() if (cache / PATH).exists() else None) == before

    def interrupted(pieces, *others, **named):
        yield from (piece for _, piece in zip(range(30), pieces, strict=False) if unchanged())
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(download, "track", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("toy")
    assert unchanged()
    fetch("toy")
    assert server.asked == [("good", None), ("good", "bytes=30000-")]
    assert (cache / PATH).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [100, 50_000, 60_000])
def test_a_part_of_something_else_does_not_last(toy, server, cache, length):
    toy("good")
    placed(cache, {f"{PATH}.part": b"x" * length})
    assert fetch("toy")[0].state == "present"
    assert server.asked[-1] == ("good", None)
    assert left(cache) == {"file.gz"}


def test_another_part_than_asked_for_is_not_appended(toy, cache):
    toy("other_range")
    placed(cache, {f"{PATH}.part": CONTENT[:20_000]})
    with pytest.raises(DataError, match="HTTP status 206 Partial Content"):
        fetch("toy")
    assert (cache / f"{PATH}.part").read_bytes() == CONTENT[:20_000]


def test_being_offline_is_one_sentence(table, own, cache, refuses):
    with Server() as down:
        urls = down.url("a"), down.url("b")
    table("toy", {PATH: CONTENT}, urls=urls)
    words = (f"{PATH} is not in {own} or {cache}", *urls, "refused", "connect to the internet")
    with pytest.raises(DataError) as caught:
        fetch("toy")
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_files_of_the_user_are_not_touched(toy, server, own, cache, refuses):
    toy("good")
    placed(own, {PATH: CONTENT})
    assert fetch("toy")[0].where == own / PATH
    placed(own, {PATH: b"mine"})
    with refuses(str(own / PATH), "it has 4 bytes instead of 50000; delete it", error=DataError):
        fetch("toy")
    assert (own / PATH).read_bytes() == b"mine"
    assert server.asked == []
    assert not cache.exists()


def test_runs_side_by_side_download_once(toy, server):
    toy("slow")
    with ThreadPoolExecutor(4) as threads:
        reports = [future.result() for future in [threads.submit(fetch, "toy") for _ in range(4)]]
    assert all(report.state == "present" for [report] in reports)
    assert len(server.asked) == 1


def test_a_wait_without_end_has_one(toy, cache, monkeypatch, refuses):
    toy("good")
    monkeypatch.setattr(download, "LONGEST_WAIT", 0.1)
    placed(cache, {"toy/other": b""})
    busy = filelock.FileLock(f"{cache / PATH}.lock")
    with busy, refuses("downloaded by another process", "file.gz.lock", error=DataError):
        fetch("toy")


def test_a_cache_that_cannot_be_written_is_named(toy, cache, refuses):
    toy("good")
    placed(cache.parent, {cache.name: b"a file in the way"})
    with refuses(str(cache / PATH), "cannot be written", "ISOLOSS_DATA", error=DataError):
        fetch("toy")


@pytest.mark.parametrize(
    ("module", "ask"), [("pooch", fetch), ("platformdirs", fetch), ("sklearn.datasets", load)]
)
def test_a_missing_extra_is_named_with_its_command(toy, module, ask, monkeypatch, refuses):
    toy("good")
    monkeypatch.setitem(sys.modules, module, None)
    with refuses(f"{module} is not installed", "pip install 'isoloss[experiments]'"):
        ask("toy" if ask is fetch else "iris")
