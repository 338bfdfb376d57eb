"""Folders of their own for every test, a table of made files, and a server that can misbehave."""

import http.server
import socket
import threading
import time

import platformdirs
import pytest
from tests.experiments.made import described

from isoloss.experiments import datasets


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The cache's data folder; $ISOLOSS_DATA is not set."""
    monkeypatch.delenv("ISOLOSS_DATA", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "isoloss" / "data"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing beyond this machine is reached: no name is looked up, no proxy asked."""
    look_up = socket.getaddrinfo

    def guarded(host, *others, **named):
        assert host == "127.0.0.1", f"a test asks for {host}"
        return look_up(host, *others, **named)

    monkeypatch.setattr(socket, "getaddrinfo", guarded)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A folder that $ISOLOSS_DATA names."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("ISOLOSS_DATA", str(folder))
    return folder


@pytest.fixture
def table(monkeypatch):
    """Puts forms of made files, given as {path: content}, into the table of official files."""

    def put(name, *forms, urls=()):
        made = tuple(tuple(described(*item, *urls) for item in form.items()) for form in forms)
        monkeypatch.setitem(datasets.FORMS, name, made)

    return put


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at every path, which names how: /good, /stall, ..."""

    daemon_threads = True
    content = b""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.over = threading.Event()

    def url(self, how):
        return f"http://127.0.0.1:{self.server_port}/{how}"

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""


DRIPS = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-More: a\r\n"),
    "one_header": (b"HTTP/1.1 200 OK\r\nX-More: ", b"a"),
    "continues": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n", b"a"),
}
"""What begins, and what never ends."""


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, format, *args):  # noqa: A002
        pass

    def drip(self, first, again):
        """Send something again and again, each time soon enough for no silence."""
        self.wfile.write(first)
        while not self.server.over.wait(0.02):
            self.wfile.write(again)
            self.wfile.flush()

    def do_GET(self):
        how, content, wanted = self.path.strip("/"), self.server.content, self.headers["Range"]
        self.server.asked.append((how, wanted))
        if how == "silent":
            self.server.over.wait(20)
            return
        if how in DRIPS:
            self.drip(*DRIPS[how])
            return
        size = len(content)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        rest = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        status, body, headers = {
            "good": (206, content[start:], rest) if wanted else (200, content, {}),
            "ignores_range": (200, content, {}),
            "slow": (200, content, {}),
            "404": (404, b"no such file", {}),
            "500": (500, b"out of order", {}),
            "wrong": (200, bytes(size), {}),
            "page": (200, b"<html>This server has moved.</html>", {}),
            "unsized": (200, content, {"Content-Length": None}),
            "endless": (200, content + bytes(10**6), {"Content-Length": None}),
            "moved": (302, b"", {"Location": self.server.url("good")}),
            "other_range": (206, content, {"Content-Range": f"bytes 0-{size - 1}/{size}"}),
            "cut": (200, content[: size // 2], {"Content-Length": size}),
            "stall": (200, content[: size // 2], {"Content-Length": size}),
        }[how]
        if how == "slow":
            time.sleep(0.3)
        self.send_response(status)
        for key, value in ({"Content-Length": len(body)} | headers).items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if how == "stall":
            self.server.over.wait(20)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()
