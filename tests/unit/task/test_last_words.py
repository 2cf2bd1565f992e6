"""What a restore that fails has written: a fake engine writes it, and fails."""

from __future__ import annotations

import fcntl
import os
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes.host import open_fds
from fakes.pod import Behind, Pod
from fakes.settled import PATIENCE

from shim.errors import ThawError
from shim.task import restoration
from shim.task.copying import Copies

NOTES = {"thaw.dev/snapshot": "warm"}
STRICT = {**NOTES, "thaw.dev/on-failure": "fail"}
WROTE = "what the failed restore has written"


@pytest.fixture
def reader(pod: Pod) -> Iterator[int]:
    """containerd's end of the container's output."""
    os.mkfifo(pod.folder / "out")
    fd = os.open(pod.folder / "out", os.O_RDONLY | os.O_NONBLOCK)
    yield fd
    os.close(fd)


def unread(fd: int) -> int:
    """Bytes."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def create(pod: Pod, plays: Any, words: str, notes: dict[str, str]) -> None:
    error = {"class": "WorkerFailed", "message": "it crashed", "hint": ""}
    plays.set("restore", play="fds", write=words, ran=True, reply={"error": error})
    pod.snapshot("warm")
    args = ("sh", "-c", "echo cold")
    pod.create("c", *args, spec={"annotations": notes}, stdout=str(pod.folder / "out"))


def test_it_is_in_the_containers_log(
    pod: Pod,
    plays: Any,
    reader: int,
    logged: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a worker said before it crashed is all that tells why, and kubelet shows it."""
    monkeypatch.setattr(restoration, "PASS_ON", PATIENCE)  # for us to come to it
    before = open_fds()
    create(pod, plays, "last words\n", STRICT)
    starting = Behind(lambda: pod.start("c"))
    pod.node.until(lambda: unread(reader) > 0)
    time.sleep(0.1)
    assert not starting.done, "whoever reads may not have come to it yet"
    assert os.read(reader, 99) == b"last words\n"
    with pytest.raises(ThawError, match="it crashed"):
        starting.get()
    pod.node.until(lambda: os.read(reader, 99) == b"")
    assert WROTE not in logged()
    pod.delete("c")
    pod.node.until(lambda: not pod.node._children())
    assert open_fds(before) == set()


def test_nobody_waits_for_one_who_does_not_read(
    pod: Pod, plays: Any, reader: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoration, "PASS_ON", 0.1)
    drain = Copies.drain  # the time is for the reader, not for the copying before it
    monkeypatch.setattr(Copies, "drain", lambda copies, _seconds: drain(copies, PATIENCE))
    create(pod, plays, "last words\n", STRICT)
    with pytest.raises(ThawError, match="it crashed"):
        pod.start("c")
    assert os.read(reader, 99) == b"last words\n"
    pod.delete("c")


def test_not_if_that_is_gone(pod: Pod, plays: Any, reader: int, logged: Callable[[], str]) -> None:
    """A containerd that was restarted has removed its FIFOs."""
    before = open_fds()
    create(pod, plays, "last words\n", STRICT)
    os.unlink(pod.folder / "out")
    with pytest.raises(ThawError, match="it crashed"):
        pod.start("c")
    assert os.read(reader, 99) == b""
    assert "output is lost" in logged()
    pod.delete("c")
    pod.node.until(lambda: not pod.node._children())
    assert open_fds(before) == set()


def test_a_cold_boots_log_has_nothing_of_it(
    pod: Pod, plays: Any, reader: int, logged: Callable[[], str]
) -> None:
    """But the shim's has the end of it."""
    create(pod, plays, "x" * 3000 + "\033[31m\nlast words\n", NOTES)
    pod.start("c")
    pod.wait("c").get()
    pod.delete("c")
    assert os.read(reader, 99) == b"cold\n"
    (line,) = [line for line in logged().splitlines() if WROTE in line]
    assert line.endswith('xxx?[31m\\nlast words\\n"')
    assert 2000 < len(line) < 2400


def test_nothing_is_said_of_nothing(
    pod: Pod, plays: Any, reader: int, logged: Callable[[], str]
) -> None:
    create(pod, plays, "", NOTES)
    pod.start("c")
    pod.wait("c").get()
    pod.delete("c")
    assert os.read(reader, 99) == b"cold\n"
    assert WROTE not in logged()


def complaining(pod: Pod, plays: Any, notes: dict[str, str]) -> None:
    """No worker has run: what is in the pipe is what runc writes into it."""
    create(pod, plays, "", notes)
    error = {"class": "RestoreFailed", "message": "CRIU failed", "hint": ""}
    plays.set("restore", play="fds", write="criu failed: see log\n", reply={"error": error})


def test_the_runtimes_complaints_are_not_the_workers(
    pod: Pod, plays: Any, reader: int, logged: Callable[[], str]
) -> None:
    complaining(pod, plays, STRICT)
    with pytest.raises(ThawError, match="CRIU failed"):
        pod.start("c")
    assert os.read(reader, 99) == b""
    assert WROTE not in logged()
    pod.delete("c")


def test_nor_a_cold_boots(pod: Pod, plays: Any, reader: int, logged: Callable[[], str]) -> None:
    complaining(pod, plays, NOTES)
    pod.start("c")
    pod.wait("c").get()
    pod.delete("c")
    assert os.read(reader, 99) == b"cold\n"
    assert WROTE not in logged()


def test_of_two_restores_each_has_its_own_mark(pod: Pod, plays: Any, reader: int) -> None:
    """None stays once it has been looked at, or a later failure would be taken for a worker's."""
    create(pod, plays, "last words\n", NOTES)
    pod.start("c")
    pod.wait("c").get()
    assert not list(pod.folder.rglob("restored"))
    pod.delete("c")
