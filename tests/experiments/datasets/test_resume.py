"""The downloader against a server on this machine, well-behaved and not."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tests.experiments.datasets.conftest import Server

from isoloss.experiments.datasets.resume import DownloadFailed, ResumingDownloader

CONTENT = np.random.default_rng(0).bytes(100_000)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "file.part"


def download(server: Server, how: str, part: Path, timeout: float = 5.0) -> bytes:
    server.content = CONTENT
    target = part.with_name("target")
    ResumingDownloader(part, len(CONTENT), timeout)(server.url(how), str(target), None)
    assert not part.exists()
    return target.read_bytes()


@pytest.mark.parametrize("how", ["good", "ignores_range", "unsized", "endless", "moved", "slow"])
def test_downloads_exactly_the_file(server: Server, part: Path, how: str) -> None:
    assert download(server, how, part) == CONTENT
    assert server.asked[0] == (how, None)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("missing", "HTTP status 404 Not Found"),
        ("page", "offers 35 bytes instead of 100000"),
    ],
)
def test_an_answer_that_is_not_the_file_leaves_nothing(
    server: Server, part: Path, how: str, why: str
) -> None:
    with pytest.raises(DownloadFailed, match=why):
        download(server, how, part)
    assert not part.exists()


def test_a_connection_that_ends_early_leaves_what_came(server: Server, part: Path) -> None:
    with pytest.raises(DownloadFailed, match="ended at 50000 of 100000 bytes"):
        download(server, "cut", part)
    assert part.read_bytes() == CONTENT[:50_000]
    assert download(server, "good", part) == CONTENT
    assert server.asked == [("cut", None), ("good", "bytes=50000-")]


@pytest.mark.parametrize("how", ["stall", "silent", "drip"])
def test_a_server_that_stops_is_left(server: Server, part: Path, how: str) -> None:
    started = time.monotonic()
    with pytest.raises(DownloadFailed, match=r"silent for 0\.3 s|too slow at"):
        download(server, how, part, timeout=0.3)
    assert time.monotonic() - started < 10
    assert part.exists() == (how != "silent")


def test_a_closed_port_is_a_failed_download(server: Server, part: Path) -> None:
    unused = Server()
    unused.server_close()
    with pytest.raises(DownloadFailed, match="refused"):
        ResumingDownloader(part, len(CONTENT), 5)(unused.url("good"), str(part), None)


@pytest.mark.parametrize("how", ["good", "moved"])
def test_goes_on_where_it_stopped(server: Server, part: Path, how: str) -> None:
    part.write_bytes(CONTENT[:70_000])
    assert download(server, how, part) == CONTENT
    assert server.asked[-1] == ("good", "bytes=70000-")


@pytest.mark.parametrize("how", ["ignores_range", "unsatisfiable"])
def test_begins_anew_where_the_server_knows_no_ranges(server: Server, part: Path, how: str) -> None:
    part.write_bytes(b"x" * 70_000)
    assert download(server, how, part) == CONTENT


def test_another_part_than_asked_for_is_not_appended(server: Server, part: Path) -> None:
    part.write_bytes(CONTENT[:70_000])
    with pytest.raises(DownloadFailed, match="another part"):
        download(server, "other_range", part)
    assert part.read_bytes() == CONTENT[:70_000]


def test_a_whole_part_is_not_asked_for_again(server: Server, part: Path) -> None:
    part.write_bytes(CONTENT)
    assert download(server, "good", part) == CONTENT
    assert server.asked == []


def test_a_part_that_is_too_long_is_begun_anew(server: Server, part: Path) -> None:
    part.write_bytes(CONTENT + b"x")
    assert download(server, "good", part) == CONTENT
    assert server.asked == [("good", None)]
