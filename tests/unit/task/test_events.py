"""Events against a real ttrpc server in containerd's place, and a script as its publish program."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.host import Node
from fakes.settled import PATIENCE

from shim.errors import Unavailable
from shim.proto import events_pb as pb
from shim.proto.known import Any as Packed
from shim.proto.known import Empty, unpack
from shim.task import events
from shim.task.events import SERVICE, TOPICS, Events, Publisher
from shim.task.reaper import Exit
from shim.ttrpc.server import Call, Method, Server


class Containerd:
    """The events service; keeps what it is told."""

    def __init__(self, node: Node, path: Path) -> None:
        self.envelopes: list[pb.Envelope] = []
        self.refusals = 0
        self._node = node
        self._lock = threading.Lock()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        methods = {"Forward": Method(pb.ForwardRequest, self._forward)}
        self._server = node.do(lambda: Server(node.loop, listener, {SERVICE: methods}))

    def _forward(self, request: pb.ForwardRequest, _call: Call) -> Empty:
        with self._lock:
            if self.refusals:
                self.refusals -= 1
                raise Unavailable("not now")
            assert request.envelope is not None
            self.envelopes.append(request.envelope)
        return Empty()

    def close(self) -> None:
        self._node.do(self._server.close)


class NoPublisher(Publisher):
    def __init__(self) -> None:
        self.asked = 0
        self.answer = False
        self.on_ask: Callable[[], None] = lambda: None

    def publish(self, envelope: pb.Envelope) -> bool:
        self.asked += 1
        self.on_ask()
        return self.answer


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once, and an idle sender goes at once."""
    monkeypatch.setattr(events, "IDLE", 0.05)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)


@pytest.fixture
def containerd(node: Node, tmp_path: Path) -> Iterator[Containerd]:
    made = Containerd(node, tmp_path / "events.sock")
    yield made
    made.close()


def queue(path: Path, publisher: Publisher | None = None) -> Events:
    return Events("k8s.io", str(path), publisher or NoPublisher())


def test_order_is_kept(containerd: Containerd, tmp_path: Path) -> None:
    sender = queue(tmp_path / "events.sock")
    for number in range(50):
        sender.publish(pb.TaskCreate(container_id="c", pid=number))
        sender.publish(pb.TaskStart(container_id="c", pid=number))
        sender.publish_exit("c", "c", number, Exit(number, 5_000_000_007))
        sender.publish(pb.TaskDelete(container_id="c", pid=number))
    assert sender.flush(PATIENCE)
    topics = [envelope.topic for envelope in containerd.envelopes]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"] * 50
    pids = [unpack(e.event, pb.TaskCreate).pid for e in containerd.envelopes[::4]]
    assert pids == list(range(50))


def test_what_an_envelope_says(containerd: Containerd, tmp_path: Path) -> None:
    sender = queue(tmp_path / "events.sock")
    sender.publish_exit("c", "exec-1", 42, Exit(137, 5_000_000_007))
    assert sender.flush(PATIENCE)  # and no sender is left that would try again after this test
    (envelope,) = containerd.envelopes
    assert envelope.namespace == "k8s.io"
    assert envelope.timestamp is not None
    assert envelope.timestamp.seconds > 0, "containerd refuses an envelope without a time"
    assert envelope.event is not None
    assert envelope.event.type_url == "containerd.events.TaskExit"
    exit = unpack(envelope.event, pb.TaskExit)
    assert (exit.container_id, exit.id, exit.pid, exit.exit_status) == ("c", "exec-1", 42, 137)
    assert exit.exited_at is not None
    assert (exit.exited_at.seconds, exit.exited_at.nanos) == (5, 7)


def test_topics_are_containerds() -> None:
    assert {kind.__name__: topic for kind, topic in TOPICS.items()} == {
        "TaskCreate": "/tasks/create",
        "TaskStart": "/tasks/start",
        "TaskExit": "/tasks/exit",
        "TaskDelete": "/tasks/delete",
        "TaskOOM": "/tasks/oom",
        "TaskExecAdded": "/tasks/exec-added",
        "TaskExecStarted": "/tasks/exec-started",
        "TaskPaused": "/tasks/paused",
        "TaskResumed": "/tasks/resumed",
        "TaskCheckpointed": "/tasks/checkpointed",
    }


def test_a_socket_that_comes_later(node: Node, tmp_path: Path) -> None:
    """containerd is restarting: the first try fails, everything arrives, in order."""
    made: list[Containerd] = []
    publisher = NoPublisher()

    def start() -> None:
        if not made:
            made.append(Containerd(node, tmp_path / "late.sock"))

    publisher.on_ask = start
    sender = queue(tmp_path / "late.sock", publisher)
    for pid in range(3):
        sender.publish(pb.TaskStart(container_id="c", pid=pid))
    assert sender.flush(PATIENCE)
    assert [unpack(e.event, pb.TaskStart).pid for e in made[0].envelopes] == [0, 1, 2]
    assert publisher.asked == 1
    made[0].close()


def test_a_connection_that_broke_is_made_anew(node: Node, tmp_path: Path) -> None:
    first = Containerd(node, tmp_path / "s")
    sender = queue(tmp_path / "s")
    sender.publish(pb.TaskStart(container_id="c", pid=1))
    assert sender.flush(PATIENCE)
    first.close()
    (tmp_path / "s").unlink()
    second = Containerd(node, tmp_path / "s")
    sender.publish(pb.TaskStart(container_id="c", pid=2))
    assert sender.flush(PATIENCE)
    assert [unpack(e.event, pb.TaskStart).pid for e in second.envelopes] == [2]
    second.close()


def test_a_refusal_is_tried_again(containerd: Containerd, tmp_path: Path) -> None:
    containerd.refusals = 1
    sender = queue(tmp_path / "events.sock")
    sender.publish(pb.TaskOOM(container_id="c"))
    assert sender.flush(PATIENCE)
    assert [e.topic for e in containerd.envelopes] == ["/tasks/oom"]


def test_what_nobody_takes_is_dropped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    monkeypatch.setattr(events, "TRIES", 1)
    sender = queue(tmp_path / "none")
    sender.publish(pb.TaskOOM(container_id="c"))
    assert sender.flush(PATIENCE), "a queue that stands still would hold up the shutdown"
    assert "event was not delivered" in logged()
    assert "/tasks/oom" in logged()


def test_the_publish_program_stands_in(node: Node, tmp_path: Path) -> None:
    script = tmp_path / "containerd"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/stdin\n')
    script.chmod(0o755)
    publisher = Publisher(node.reaper, str(script), "/run/containerd.sock")
    sender = Events("k8s.io", "", publisher)
    sender.publish(pb.TaskOOM(container_id="c9"))
    assert sender.flush(PATIENCE)
    assert (tmp_path / "arguments").read_text().split() == [
        *("--address", "/run/containerd.sock", "publish"),
        *("--topic", "/tasks/oom", "--namespace", "k8s.io"),
    ]
    event = Packed.decode((tmp_path / "stdin").read_bytes())
    assert unpack(event, pb.TaskOOM).container_id == "c9"


@pytest.mark.parametrize("program", ["", "/nowhere", "/bin/false"])
def test_a_publish_program_that_does_not_take_it(node: Node, program: str) -> None:
    from shim.proto.known import pack

    publisher = Publisher(node.reaper, program, "")
    envelope = pb.Envelope(topic="/tasks/oom", event=pack(pb.TaskOOM(container_id="c")))
    assert not publisher.publish(envelope)


def test_an_idle_sender_goes_and_comes_again(
    node: Node, containerd: Containerd, tmp_path: Path
) -> None:
    sender = queue(tmp_path / "events.sock")
    sender.publish(pb.TaskOOM(container_id="c"))
    node.until(lambda: not sender._sending)
    sender.publish(pb.TaskOOM(container_id="d"))
    assert sender.flush(PATIENCE)
    assert len(containerd.envelopes) == 2
