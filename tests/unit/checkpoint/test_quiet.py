"""A worker that is kept quiet: what it is asked, when, and that it is never left asleep."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.pod import FAKES
from fakes.settled import PATIENCE
from fakes.talkers import Talker, answer, talker
from fakes.work import make_work

from shim.checkpoint.quiet import Quiet, resume
from shim.errors import BadAnnotation, CheckpointFailed, WorkerFailed
from shim.runc import Runc
from shim.timeline import Timeline
from shim.work import Work
from shim.worker import actions


class Server:
    """A worker's server; `refused` are the paths that it answers with 500."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.talker: Talker

    @property
    def asked(self) -> list[str]:
        """What was asked for, in order."""
        return [heard.split()[1].decode() for heard in self.talker.heard]

    def talk(self, connection: socket.socket, request: bytes) -> None:
        bad = request.split()[1].decode() in self.refused
        answer(500 if bad else 200, b"cannot" if bad else b"")(connection, request)

    def notes(self, quiesce: str = "/sleep", resume: str = "/wake") -> dict[str, str]:
        named = {"thaw.dev/quiesce": quiesce, "thaw.dev/resume": resume}
        return {key: f"http:{self.talker.port}{path}" for key, path in named.items() if path}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with talker(made.talk) as made.talker:
        yield made


def work_of(folder: Path, notes: dict[str, str], **details: Any) -> Work:
    """A container that has a control directory; its init is this process."""
    control = folder / "control"
    control.mkdir(exist_ok=True)
    mount = {"destination": "/snapshot-control", "source": str(control), "options": ["rbind"]}
    asked = {"verb": "checkpoint", "pid": os.getpid(), "exit": False, **details}
    return make_work(folder, {"annotations": notes, "mounts": [mount]}, **asked)


def told(folder: Path) -> bool:
    return (folder / "control/restore-complete").exists()


def test_before_and_after(server: Server, tmp_path: Path) -> None:
    timeline = Timeline()
    with Quiet(work_of(tmp_path, server.notes()), timeline) as quiet:
        assert server.asked == ["/sleep"]
        quiet.over()
        assert server.asked == ["/sleep", "/wake"], "not only when all is written"
    assert server.asked == ["/sleep", "/wake"]
    assert [span.name for span in timeline.spans] == ["quiesce", "resume"]
    assert quiet.failure == ""
    assert quiet.seconds >= timeline.seconds("quiesce") + timeline.seconds("resume") > 0
    assert not told(tmp_path), "it had not said that it waits"


def test_nothing_is_asked_for(tmp_path: Path) -> None:
    with Quiet(work_of(tmp_path, {}), Timeline()) as quiet:
        quiet.over()
    assert (quiet.failure, told(tmp_path)) == ("", False)


@pytest.mark.parametrize("quiesce", ["/sleep", ""])
def test_a_dump_that_fails(server: Server, tmp_path: Path, quiesce: str) -> None:
    work = work_of(tmp_path, server.notes(quiesce=quiesce))
    (tmp_path / "control/ready-for-snapshot").touch()
    with pytest.raises(CheckpointFailed), Quiet(work, Timeline()):
        raise CheckpointFailed("no dump")
    assert server.asked[-1] == "/wake"
    assert not told(tmp_path), "one that waits may be dumped again"


def test_what_fails_later(server: Server, tmp_path: Path) -> None:
    """It is awake already."""
    with pytest.raises(CheckpointFailed):
        _fail_late(work_of(tmp_path, server.notes()))
    assert server.asked == ["/sleep", "/wake"]


def _fail_late(work: Work) -> None:
    with Quiet(work, Timeline()) as quiet:
        quiet.over()
        raise CheckpointFailed("no room")


@pytest.mark.parametrize("key", ["exit", "ends"])
def test_one_that_ends_is_not_woken_for_it(server: Server, tmp_path: Path, key: str) -> None:
    work = work_of(tmp_path, server.notes(), **{key: True})
    (tmp_path / "control/ready-for-snapshot").touch()
    with Quiet(work, Timeline()) as quiet:
        quiet.over()
    assert (server.asked, told(tmp_path)) == (["/sleep"], False)
    with pytest.raises(CheckpointFailed):
        _fail_late(work)
    assert server.asked == ["/sleep", "/sleep", "/wake"], "it does not end then"


def test_it_cannot_be_quiesced(server: Server, tmp_path: Path) -> None:
    server.refused = {"/sleep"}
    entered = False
    with (
        pytest.raises(WorkerFailed, match=r"no snapshot is made.*/sleep: answered 500: cannot"),
        Quiet(work_of(tmp_path, server.notes()), Timeline()),
    ):
        entered = True
    assert not entered
    assert server.asked == ["/sleep", "/wake"], "it may be half asleep"


def test_it_hangs(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = threading.Event()

    def hang(connection: socket.socket, request: bytes) -> None:
        if b"/sleep" in request:
            heard.set()
            connection.recv(1)
        answer(200)(connection, request)

    receive = actions.Timed.receive_into

    def receive_once_heard(timed: actions.Timed, buffer: Any) -> int:
        assert heard.wait(PATIENCE)
        return receive(timed, buffer)

    # It has its time from when the worker has heard it: both may be late.
    monkeypatch.setattr(actions, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(actions.Timed, "receive_into", receive_once_heard)
    server.talker.talk = hang
    notes = {**server.notes(), "thaw.dev/quiesce-timeout": "0.2"}
    with (
        pytest.raises(WorkerFailed, match=r"no answer within 0.2 s"),
        Quiet(work_of(tmp_path, notes), Timeline()),
    ):
        pass
    assert server.asked == ["/sleep", "/wake"]


def test_it_cannot_be_resumed(server: Server, tmp_path: Path) -> None:
    """That is no reason to lose the snapshot; whoever asked for it hears of it."""
    server.refused = {"/wake"}
    work = work_of(tmp_path, server.notes())
    (tmp_path / "control/ready-for-snapshot").touch()
    with Quiet(work, Timeline()) as quiet:
        quiet.over()
    assert "cannot be resumed" in quiet.failure
    assert "/wake: answered 500: cannot" in quiet.failure
    assert told(tmp_path)
    quiet = Quiet(work, Timeline())
    with pytest.raises(CheckpointFailed) as caught, quiet:
        raise CheckpointFailed("no dump", hint="see the log")
    explained = quiet.explained(caught.value)
    assert isinstance(explained, CheckpointFailed)
    assert explained.message.startswith("no dump\nits worker cannot be resumed: ")
    assert explained.hint == "see the log"


def test_a_worker_that_has_ended_is_not_asked(server: Server, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        work = work_of(tmp_path, server.notes(), pid=process.pid)
        with Quiet(work, Timeline()) as quiet:
            process.kill()
            process.wait()
            quiet.over()
    assert (server.asked, quiet.failure) == (["/sleep"], "")


def test_one_that_waits_is_told(tmp_path: Path) -> None:
    work = work_of(tmp_path, {})
    (tmp_path / "control/ready-for-snapshot").touch()
    with Quiet(work, Timeline()) as quiet:
        assert not told(tmp_path)
        quiet.over()
    assert told(tmp_path)


def test_one_that_cannot_be_told(tmp_path: Path) -> None:
    work = work_of(tmp_path, {})
    (tmp_path / "control/ready-for-snapshot").touch()
    (tmp_path / "control/restore-complete").mkdir()
    with Quiet(work, Timeline()) as quiet:
        quiet.over()
    assert quiet.failure.startswith("its worker cannot be told: ")
    assert "restore-complete" in quiet.failure


def test_a_bad_place_for_a_control_directory(tmp_path: Path) -> None:
    """Whatever a container calls so: it can be dumped."""
    spec = {"annotations": {}, "process": {"env": ["SNAPSHOT_CONTROL_DIR=here"], "args": ["x"]}}
    work = make_work(tmp_path, spec, verb="checkpoint", pid=os.getpid(), exit=False)
    with Quiet(work, Timeline()) as quiet:
        quiet.over()
    assert quiet.failure == ""


def test_a_control_directory_that_is_none(tmp_path: Path) -> None:
    work = work_of(tmp_path, {})
    (tmp_path / "control").rmdir()
    (tmp_path / "control").symlink_to("/etc")
    with Quiet(work, Timeline()) as quiet:
        quiet.over()
    assert quiet.failure == ""


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def beside(_runc: Runc, command: list[str], pid_file: str) -> list[str]:
        return [sys.executable, "-IS", str(FAKES / "execing.py"), pid_file, *command]

    monkeypatch.setattr(Runc, "inside", beside)
    said = tmp_path / "said"
    notes = {
        "thaw.dev/quiesce": f"exec:echo sleep >>{said}",
        "thaw.dev/resume": f"exec:echo wake >>{said}; echo no; false",
    }
    with Quiet(work_of(tmp_path, notes), Timeline()) as quiet:
        assert said.read_text() == "sleep\n"
        quiet.over()
    assert said.read_text() == "sleep\nwake\n"
    assert quiet.failure.endswith("exit status 1: no")


def test_bad_annotations(tmp_path: Path) -> None:
    with pytest.raises(BadAnnotation, match="resume"):
        Quiet(work_of(tmp_path, {"thaw.dev/resume": "soon"}), Timeline())


def test_resuming_alone(server: Server, tmp_path: Path) -> None:
    work = work_of(tmp_path, server.notes(), verb="resume")
    assert resume(work) == {}
    assert server.asked == ["/wake"]
    server.refused = {"/wake"}
    with pytest.raises(WorkerFailed, match="answered 500"):
        resume(work)


def test_nothing_is_to_be_resumed(tmp_path: Path) -> None:
    assert resume(work_of(tmp_path, {}, verb="resume")) == {}
