"""Fetching a file that is known by its size and hash, from servers that may do anything."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import track

from isoloss.errors import DataError, one_line, require_extra

if TYPE_CHECKING:
    import requests

SILENCE = 30.0  # seconds for which a server may be silent
LONGEST_HEADERS = 60.0  # seconds after which a server has to be done with them
LONGEST_WAIT = 3600.0  # seconds for which this or another process may take to download a file
CHUNK = 2**16


class _Failed(Exception):  # noqa: N818
    """Why an address did not give the file, as part of a sentence."""


def download(urls: tuple[str, ...], target: Path, size: int, sha256: str, missing: str) -> None:
    """Place a file, whole and compared with its hash, from the first address that gives it."""
    pooch = require_extra("pooch", "experiments")
    name, part = target.name, target.with_name(f"{target.name}.part")
    registry, failures = {name: f"sha256:{sha256}"}, dict[str, str]()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Runs started side by side all want the same file: one downloads and the others wait.
        with FileLock(f"{target}.lock", timeout=LONGEST_WAIT):
            # A part may be of something else: where the hash then is wrong, it starts over once.
            for url in urls * (2 if part.exists() else 1):
                cache = pooch.create(target.parent, "", registry=registry, urls={name: url})
                try:
                    cache.fetch(name, downloader=partial(_receive, part, size))
                except _Failed as error:
                    failures[url] = str(error)
                except ValueError:  # pooch's word for a wrong hash; it has removed the file
                    failures[url] = "its SHA-256 differs from the published one"
                else:
                    return
            kept = f" ({part.stat().st_size} of {size} bytes are kept)" if part.exists() else ""
    except Timeout as error:
        raise DataError(
            f"{target} is being downloaded by another process that has not finished in an hour; "
            f"end that process, or delete {target}.lock"
        ) from error
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error.strerror or error}; make room there, or place "
            "the file in a folder of your own and set ISOLOSS_DATA to it"
        ) from error
    tried = " or ".join(f"{url} ({why})" for url, why in failures.items())
    raise DataError(
        f"{missing} and could not be downloaded from {tried}; connect to the "
        f"internet and try again{kept}, or place the file there yourself"
    )


def _receive(part: Path, size: int, url: str, output: str, _pooch: object) -> None:
    """Download for pooch; what has arrived stays in `part` if that fails, to be continued."""
    import requests  # comes with pooch; slow to import

    have = part.stat().st_size if part.exists() else 0
    have = have if have < size else 0
    # identity: a server that compressed the answer would count other bytes than the file's.
    headers = {"User-Agent": "isoloss", "Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={have}-"} if have else {}
    arriving = _Arriving(url, headers)
    try:
        answer = arriving.answer()
        if answer.status_code == 200:  # also from servers that know no ranges
            have = 0
        elif answer.headers.get("Content-Range") != f"bytes {have}-{size - 1}/{size}":
            raise _Failed(f"HTTP status {answer.status_code} {answer.reason[:40]}")
        offered = answer.headers.get("Content-Length", str(size - have))
        if offered != str(size - have):
            raise _Failed(f"the server offers {offered[:20]} bytes instead of {size - have}")
        chunks, console = (size - have) / CHUNK, Console(stderr=True, markup=False)
        for piece in track(arriving.pieces(), part.stem, chunks, console=console):
            with part.open("ab") as out:
                out.truncate(have)
                have += out.write(piece[: size - have])
            if have == size:
                break
    except _LateError as error:
        raise _Failed(f"{error} after {have} of {size} bytes") from error
    except requests.RequestException as error:
        root: BaseException = error
        while root.__context__ is not None:
            root = root.__context__
        silent = f"the server was silent for {SILENCE:g} s"
        why = silent if isinstance(root, TimeoutError) else getattr(root, "strerror", None)
        raise _Failed(f"{why or one_line(root)} after {have} of {size} bytes") from error
    finally:
        arriving.over.set()
    part.replace(output)


class _LateError(Exception):
    """Something did not come in time."""


class _Arriving:
    """What a server sends, received in a thread of its own, which can be left alone with it: the
    timeouts of requests begin anew with every byte, so that a server may never end."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.over = threading.Event()  # once nothing more is wanted
        self._came: queue.Queue[Any] = queue.Queue(maxsize=8)
        self._until = time.monotonic() + LONGEST_WAIT
        threading.Thread(target=self._receive, args=(url, headers), daemon=True).start()

    def answer(self) -> requests.Response:
        """The answer with its headers, what follows them still on its way."""
        within = f"the server's headers did not end in {LONGEST_HEADERS:g} s"
        return self._next(time.monotonic() + LONGEST_HEADERS, within)

    def pieces(self) -> Iterator[bytes]:
        """What follows, to its end."""
        within = f"the file did not come in {LONGEST_WAIT:g} s"
        while (piece := self._next(self._until, within)) is not None:
            yield piece

    def _next(self, until: float, otherwise: str) -> Any:
        try:
            came = self._came.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise _LateError(otherwise) from None
        if isinstance(came, Exception):
            raise came
        return came

    def _receive(self, url: str, headers: dict[str, str]) -> None:
        import requests

        try:
            with requests.get(url, headers=headers, stream=True, timeout=SILENCE) as answer:
                self._tell(answer)
                for piece in answer.iter_content(CHUNK):
                    self._tell(piece)
                    if self.over.is_set():
                        return
            self._tell(None)
        except Exception as error:
            self._tell(error)

    def _tell(self, what: object) -> None:
        while not self.over.is_set():
            with suppress(queue.Full):
                self._came.put(what, timeout=0.1)
                return
