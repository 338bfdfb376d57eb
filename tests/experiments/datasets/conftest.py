"""Folders of their own for every test, and a server that can misbehave."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache's data folder; $ISOLOSS_DATA is not set."""
    monkeypatch.delenv("ISOLOSS_DATA", raising=False)

    def user_cache_path(name: str) -> Path:
        return tmp_path / "cache" / name

    monkeypatch.setattr(platformdirs, "user_cache_path", user_cache_path)
    return tmp_path / "cache" / "isoloss" / "data"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing beyond this machine is reached: no name is looked up, no proxy asked."""
    look_up = socket.getaddrinfo

    def guarded(host: str, *others: object, **named: object) -> object:
        assert host == "127.0.0.1", f"a test asks for {host}"
        return look_up(host, *others, **named)  # pyright: ignore

    monkeypatch.setattr(socket, "getaddrinfo", guarded)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that $ISOLOSS_DATA names."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("ISOLOSS_DATA", str(folder))
    return folder


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at every path, which names how: /good, /stall, ..."""

    daemon_threads = True
    content = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.over = threading.Event()

    def url(self, how: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{how}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        how, content = self.path.strip("/"), self.server.content
        wanted = self.headers.get("Range")
        self.server.asked.append((how, wanted))
        half = len(content) // 2
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        match how:
            case "good" if wanted:
                where = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.answer(206, content[start:], {"Content-Range": where})
            case "good" | "ignores_range":
                self.answer(200, content)
            case "missing":
                self.answer(404, b"no such file")
            case "wrong":
                self.answer(200, bytes(len(content)))
            case "page":
                self.answer(200, b"<html>This server has moved.</html>")
            case "unsized":
                self.answer(200, content, {"Content-Length": None})
            case "endless":
                self.answer(200, content + bytes(10**6), {"Content-Length": None})
            case "moved":
                self.answer(302, b"", {"Location": self.server.url("good")})
            case "unsatisfiable" if wanted:
                self.answer(416, b"")
            case "unsatisfiable":
                self.answer(200, content)
            case "other_range":
                where = f"bytes 0-{len(content) - 1}/{len(content)}"
                self.answer(206, content, {"Content-Range": where})
            case "cut":
                self.answer(200, content[:half], {"Content-Length": str(len(content))})
            case "stall":
                self.answer(200, content[:half], {"Content-Length": str(len(content))})
                self.server.over.wait(20)
            case "silent":
                self.server.over.wait(20)
            case "drip":
                self.answer(200, b"", {"Content-Length": str(len(content))})
                while not self.server.over.wait(0.02):
                    self.wfile.write(b".")
                    self.wfile.flush()
            case "slow":
                self.answer(200, b"", {"Content-Length": str(len(content))})
                for i in range(0, len(content), 4096):
                    self.wfile.write(content[i : i + 4096])
                    time.sleep(0.01)
            case _:
                raise AssertionError(how)

    def answer(
        self, status: int, body: bytes, headers: dict[str, str | None] | None = None
    ) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()
