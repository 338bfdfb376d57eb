"""A downloader for pooch that goes on where an earlier download stopped."""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_CHUNK = 2**16
_FEWEST_BYTES = 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class DownloadFailed(Exception):  # noqa: N818
    """Why an address did not give the file, as part of a sentence."""


class ResumingDownloader:
    """Downloads one file of known size over HTTP; what has arrived is kept for the next time.

    Args:
        part: Where the file grows; it stays when the download fails and is continued by the next
            one, from any address.
        size: Of the whole file, in bytes. No more than that is ever stored.
        timeout: In seconds: how long the server may be silent, and the stretch in which at least
            1 KiB must arrive.
    """

    def __init__(self, part: Path, size: int, timeout: float) -> None:
        self._part = part
        self._size = size
        self._timeout = timeout

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        """Download, as pooch asks for it.

        Args:
            url: The address, http or https.
            output_file: Where the whole file goes.

        Raises:
            DownloadFailed: The address did not give all of the file.
        """
        have = self._part.stat().st_size if self._part.exists() else 0
        if have > self._size:
            have = 0
        if have < self._size:
            self._receive(url, have)
        self._part.replace(output_file)

    def _receive(self, url: str, have: int) -> None:
        try:
            with self._open(url, have) as response:
                start = self._start(response, have)
                with self._part.open("ab" if start else "wb") as out:
                    self._copy(response, start, out)
        except HTTPError as error:
            with error:
                if error.code != 416 or have == 0:
                    raise DownloadFailed(f"HTTP status {error.code} {error.reason}") from error
            self._receive(url, 0)  # the server's file is no longer than the part: begin anew

    @contextmanager
    def _open(self, url: str, have: int) -> Generator[HTTPResponse]:
        # identity: a server that compressed the answer would count other bytes than the file's.
        headers = {"User-Agent": "isoloss", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with _network_errors(self._timeout):
            response: HTTPResponse = urlopen(  # noqa: S310
                Request(url, headers=headers),  # noqa: S310
                timeout=self._timeout,
            )
        with response:
            yield response

    def _start(self, response: HTTPResponse, have: int) -> int:
        """Where in the file the answer starts; only an answer that fits is begun to be read."""
        length: str | None = response.headers.get("Content-Length")
        if response.status == 200:  # also from servers that know no ranges
            if length is not None and length != str(self._size):
                raise DownloadFailed(f"the server offers {length} bytes instead of {self._size}")
            return 0
        answer = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == 206 and answer and answer.groups() == (str(have), str(self._size)):
            return have
        raise DownloadFailed(f"the server answered {response.status} with another part of the file")

    def _copy(self, response: HTTPResponse, start: int, out: BinaryIO) -> None:
        have = have_then = start
        then = time.monotonic()
        with _progress() as progress:
            task = progress.add_task(self._part.stem, total=self._size, completed=start)
            while have < self._size:
                with _network_errors(self._timeout):
                    # read1 gives what one packet brings; read would wait for a whole chunk.
                    chunk = response.read1(min(_CHUNK, self._size - have))
                if not chunk:
                    raise DownloadFailed(f"the connection ended at {have} of {self._size} bytes")
                out.write(chunk)
                have += len(chunk)
                progress.update(task, completed=have)
                now = time.monotonic()
                if now - then > self._timeout:
                    if have - have_then < _FEWEST_BYTES:
                        raise DownloadFailed(f"the server is too slow at {have} bytes")
                    then, have_then = now, have


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def _network_errors(timeout: float) -> Generator[None]:
    try:
        yield
    except HTTPError:
        raise
    except (OSError, HTTPException) as error:
        reason: Any = getattr(error, "reason", error)  # what URLError wraps
        if isinstance(reason, TimeoutError):
            raise DownloadFailed(f"the server was silent for {timeout:g} s") from error
        said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise DownloadFailed(said) from error
