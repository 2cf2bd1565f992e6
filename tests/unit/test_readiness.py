"""Probes: asked of a container that need not be honest."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes.host import open_fds
from fakes.settled import PATIENCE

from shim import readiness
from shim.annotations import Probe
from shim.errors import NotFound
from shim.work import Work


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow answer is none, but not because this machine has other things to do."""
    monkeypatch.setattr(readiness, "_PATIENCE", PATIENCE)


@pytest.fixture
def init() -> Iterator[int]:
    """A process in the place of a container's init; its root and network are ours."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process.pid
    process.kill()
    process.wait()


def work(init: int, runc: Any = None, **spec: Any) -> Work:
    bundle = SimpleNamespace(spec=lambda: spec)
    return cast(Work, SimpleNamespace(id="c", details={"pid": init}, runc=runc, bundle=bundle))


class Server(http.server.BaseHTTPRequestHandler):
    """Answers /NUMBER with that status."""

    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file(init: int, tmp_path: Path) -> None:
    path = tmp_path / "ready"
    probe = Probe("file", str(path))
    assert not readiness.ready(probe, work(init))
    path.touch()
    assert readiness.ready(probe, work(init))


def test_no_link_is_followed(init: int, tmp_path: Path) -> None:
    """It would lead to the host's files: /proc/PID/root is no root for links."""
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    assert not readiness.ready(Probe("file", f"{tmp_path}/link/there"), work(init))
    assert not readiness.ready(Probe("file", f"{tmp_path}/../{tmp_path.name}/there"), work(init))


def test_a_server(init: int, port: int) -> None:
    assert readiness.ready(Probe("tcp", str(port)), work(init))
    for status, good in ((200, True), (204, True), (302, True), (404, False), (503, False)):
        assert readiness.ready(Probe("http", f"{port}/{status}"), work(init)) == good


def test_nobody_listens(init: int) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]  # kept, or somebody may come to listen there
        assert not readiness.ready(Probe("tcp", str(port)), work(init))
        assert not readiness.ready(Probe("http", f"{port}/"), work(init))


def test_something_else_than_a_web_server(init: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(b"\x00\x01 no http\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        assert not readiness.ready(Probe("http", f"{server.getsockname()[1]}/"), work(init))
        thread.join()


def test_a_command(init: int) -> None:
    class Runc:
        env = os.environ
        folder = "/nowhere"

        def inside(self, command: list[str], _pid_file: str) -> list[str]:
            return command

    assert readiness.ready(Probe("exec", "true"), work(init, Runc()))
    assert not readiness.ready(Probe("exec", "false"), work(init, Runc()))


def test_the_contract(init: int, tmp_path: Path) -> None:
    contract = Probe("contract", "")
    assert not readiness.ready(contract, work(init))
    mount = {"destination": "/snapshot-control", "source": str(tmp_path), "options": ["rbind"]}
    asked = work(init, mounts=[mount])
    assert not readiness.ready(contract, asked)
    (tmp_path / "ready-for-snapshot").touch()
    assert readiness.ready(contract, asked)


def test_a_server_that_never_comes_to_the_point(init: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that trickles, or that says much, keep us."""
    monkeypatch.setattr(readiness, "_PATIENCE", 0.3)
    for said, pause in ((b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), (b"H", 0.05), (b"x" * 5000, 0)):
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer(
                server: socket.socket = server, said: bytes = said, pause: float = pause
            ) -> None:
                connection, _ = server.accept()
                with connection:
                    try:
                        while True:
                            connection.sendall(said)
                            time.sleep(pause)
                    except OSError:
                        pass

            thread = threading.Thread(target=answer)
            thread.start()
            began = time.monotonic()
            assert not readiness.ready(Probe("http", f"{server.getsockname()[1]}/"), work(init))
            assert time.monotonic() - began < PATIENCE
            thread.join()


def test_waiting(init: int, tmp_path: Path) -> None:
    path = tmp_path / "ready"
    timer = threading.Timer(0.2, path.touch)
    began = time.monotonic()
    timer.start()
    readiness.wait(Probe("file", str(path)), work(init))
    assert time.monotonic() - began > 0.1
    timer.join()


def test_the_container_ends_first(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "0.2"])
    before = open_fds()
    with pytest.raises(NotFound, match="ended before it was ready"):
        readiness.wait(Probe("file", str(tmp_path / "never")), work(process.pid))
    process.wait()
    assert open_fds(before) == set()
