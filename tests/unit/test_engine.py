"""The engine process itself, with the test as its daemon."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fakes.settled import PATIENCE, eventually

from shim import engine
from shim.checkpoint.auto import Making
from shim.errors import GpuLost, Unfit
from shim.work import Work

# As `python3 -IS shim/engine.py`, but for an environment in which Thaw need not be installed.
PROGRAM = "import sys; from shim import engine; sys.exit(engine.main(sys.argv[1:]))"
HANGING = """
import os, sys
from shim import engine
import shim.restore.engine
def hang(work):
    child = os.fork()
    if not child:
        os.close(3)
        while True:
            os.read(os.pipe()[0], 1)
    with open(work.folder / "new", "w") as file:
        file.write(str(child))
    os.rename(work.folder / "new", work.folder / "child")
    while True:
        os.read(os.pipe()[0], 1)
shim.restore.engine.undo = hang
sys.exit(engine.main([]))
"""

OTHER = """
import sys
from shim import engine
from shim.errors import OtherContainer
import shim.restore.engine
def other(*_):
    raise OtherContainer("not this one")
shim.restore.engine.restore = other
sys.exit(engine.main([]))
"""

EARLY = """
import sys
from shim import engine
from shim.restore import bulk, device
import shim.restore.engine
closed = []
device.Device.close = lambda self: closed.append(self)
bulk.ReadAhead.begin = lambda self, request, opened: None
engine._answer = lambda request, fds, begun: {"closed": len(closed), "fds": len(fds)}
sys.exit(engine.main([]))
"""


class Daemon:
    """The other end of the socket."""

    def __init__(self, program: str = PROGRAM) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE)
        script = f"import os; os.dup2({theirs.fileno()}, 3)\n{program}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], pass_fds=[theirs.fileno()], start_new_session=True
        )
        theirs.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = self.socket.recv(4096)
            assert chunk, "it broke off"
            answer += chunk
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        self.socket.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    yield made
    made.close()


def request(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "verb": "undo",
        "id": "c1",
        "namespace": "k8s.io",
        "bundle": str(folder),
        "folder": str(folder),
        "rootfs": [],
        "terminal": False,
        "config": {},
        "containerd": "",
        "snapshot": "/somewhere",
        **changes,
    }


def test_one_question_one_answer(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.ask(request(tmp_path)) == {}, "nothing was begun, nothing is undone"
    assert daemon.process.wait(PATIENCE) == 0


def test_a_question_that_comes_in_pieces(daemon: Daemon, tmp_path: Path) -> None:
    line = json.dumps(request(tmp_path, filler="x" * 300_000)).encode() + b"\n"
    read, write = os.pipe()
    socket.send_fds(daemon.socket, [line[:1]], [write])
    daemon.socket.sendall(line[1:-1])
    daemon.socket.sendall(b"\n")
    assert b"error" in daemon.socket.recv(4096), "one descriptor came that nothing was said of"
    os.close(read)
    os.close(write)


def test_errors_are_answers(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "restoring").write_text("no json")
    error = daemon.ask(request(tmp_path))["error"]
    assert error["class"] == "Unknown"
    assert "JSONDecodeError" in error["message"]
    assert "restore/engine.py" in error["hint"], "where it came from"
    assert daemon.process.wait(PATIENCE) == 1


def test_leaves_keep_their_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(*_: object) -> dict[str, Any]:
        raise Unfit("another image", hint="use that")

    monkeypatch.setattr("shim.restore.engine.restore", unfit)
    assert engine._answer(request(tmp_path, verb="restore"), (), engine.Begun()) == {
        "error": {"class": "Unfit", "message": "another image", "hint": "use that"}
    }


def test_system_errors_need_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_work: object, _ends: object) -> dict[str, Any]:
        raise OSError(28, "No space left on device", "/x")

    monkeypatch.setattr("shim.checkpoint.engine.checkpoint", full)
    error = engine._answer(request(tmp_path, verb="checkpoint"), (), engine.Begun())["error"]
    assert "No space left on device: '/x'" in error["message"]
    assert error["hint"] == ""


def test_a_lost_worker_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever has waited for it in this process; one that was asked for by hand has nobody."""

    class Waited:
        lost = ""

        def lose(self, work: Work, error: GpuLost) -> None:
            self.lost = f"{work.id}: {error}"

    def lost(_work: object, _ends: object) -> dict[str, Any]:
        raise GpuLost("no room")

    monkeypatch.setattr("shim.checkpoint.engine.checkpoint", lost)
    begun, waited = engine.Begun(), Waited()
    asked = request(tmp_path, verb="checkpoint")
    assert engine._answer(asked, (), begun)["error"]["class"] == "GpuLost"
    begun.making.append(cast(Making, waited))
    assert engine._answer(asked, (), begun)["error"]["class"] == "GpuLost"
    assert waited.lost == "c1: no room"


def test_an_unknown_verb(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.ask(request(tmp_path, verb="dance"))["error"]["class"] == "Unknown"


def test_a_daemon_that_needs_it_no_more(daemon: Daemon) -> None:
    daemon.socket.close()
    assert daemon.process.wait(PATIENCE) in (0, -signal.SIGKILL)


def test_what_is_read_ahead_wants_no_answer(daemon: Daemon, tmp_path: Path) -> None:
    """Nor is it an error if there is nothing to read."""
    ahead = {"verb": "read-ahead", "name": "one", "config": {"snapshots": str(tmp_path)}}
    daemon.socket.sendall(json.dumps(ahead).encode() + b"\n")
    assert daemon.ask(request(tmp_path)) == {}


def test_it_stays_for_the_container_that_is_meant(tmp_path: Path) -> None:
    daemon = Daemon(OTHER)
    for _ in range(2):
        answer = daemon.ask(request(tmp_path, verb="restore"))
        assert answer["error"]["class"] == "OtherContainer"
    assert daemon.ask(request(tmp_path)) == {}
    assert daemon.process.wait(PATIENCE) == 0
    daemon.close()


def test_it_gives_way_and_is_asked_later(tmp_path: Path) -> None:
    """Another container of the pod gets the GPU: told twice, or before there is anything to let go,
    nothing happens.
    """
    daemon = Daemon(EARLY)
    way = json.dumps({"verb": "give-way"}).encode() + b"\n"
    daemon.socket.sendall(way)
    ahead = {"verb": "read-ahead", "name": "one", "config": {"snapshots": str(tmp_path)}}
    daemon.socket.sendall(json.dumps(ahead).encode() + b"\n" + way + way)
    read, write = os.pipe()
    line = json.dumps(request(tmp_path)).encode() + b"\n"
    socket.send_fds(daemon.socket, [line], [write])
    assert json.loads(daemon.socket.recv(4096)) == {"closed": 2, "fds": 1}
    os.close(read)
    os.close(write)
    daemon.close()


def test_it_ends_with_the_daemon_and_takes_its_children_along(tmp_path: Path) -> None:
    daemon = Daemon(HANGING)
    daemon.socket.sendall(json.dumps(request(tmp_path)).encode() + b"\n")
    eventually((tmp_path / "child").exists)
    child = os.pidfd_open(int((tmp_path / "child").read_text()))
    daemon.socket.close()
    assert daemon.process.wait(PATIENCE) == -signal.SIGKILL
    assert select.select([child], [], [], PATIENCE)[0]
    os.close(child)


def test_undo_by_name(tmp_path: Path) -> None:
    """As `delete` calls it after a shim that died."""
    path = tmp_path / "marker"
    path.write_text(json.dumps(request(tmp_path / "none")))
    argv = [sys.executable, "-c", PROGRAM, "undo", str(path)]
    assert subprocess.run(argv, check=False).returncode == 0
    path.write_text(json.dumps(request(tmp_path, verb="dance")))
    assert subprocess.run(argv, check=False).returncode == 1
