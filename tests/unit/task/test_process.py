from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from fakes.host import Node, open_fds
from fakes.pod import Behind
from fakes.settled import PATIENCE

from shim.errors import FailedPrecondition, NotFound
from shim.task.process import Console, Process
from shim.task.reaper import Exit
from shim.task.stdio import Streams

NULL = Streams("", "", "", False)


def test_everyone_who_waits_is_told_once() -> None:
    process = Process(NULL)
    heard: list[tuple[str, int]] = []
    process.when_ended(lambda exit: heard.append(("a", exit.status)))
    process.when_ended(lambda exit: heard.append(("b", exit.status)))
    assert process.set_exit(Exit(7, 1))
    assert not process.set_exit(Exit(8, 2)), "the first end counts"
    process.when_ended(lambda exit: heard.append(("late", exit.status)))
    assert heard == [("a", 7), ("b", 7), ("late", 7)]


def test_waiting_and_ending_at_once_lose_nobody() -> None:
    for _ in range(50):
        process, start = Process(NULL), threading.Barrier(5)
        told = [threading.Event() for _ in range(4)]

        def wait(
            event: threading.Event, process: Process = process, start: threading.Barrier = start
        ) -> None:
            start.wait(PATIENCE)
            process.when_ended(lambda _exit: event.set())

        threads = [threading.Thread(target=wait, args=(event,)) for event in told]
        for thread in threads:
            thread.start()
        start.wait(PATIENCE)
        process.set_exit(Exit(0, 0))
        assert all(event.wait(PATIENCE) for event in told)
        for thread in threads:
            thread.join(PATIENCE)


def test_streams_are_opened_anew_without_a_gap(node: Node, tmp_path: Path) -> None:
    """Between a failed restore and the cold boot containerd must not see the log's end."""
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    process = Process(Streams("", str(tmp_path / "out"), "", False))
    first = process.open_stdio(node.host, {}, (0, 0))
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    second = process.open_stdio(node.host, {}, (0, 0))
    node.do(lambda: None)
    assert first.child_fds == {}, "the old one is closed"
    with pytest.raises(BlockingIOError):  # an end would read as b""
        os.read(reader, 1)
    os.write(second.child_fds[1], b"cold")
    second.started()
    process.stdio = second
    second.drain(PATIENCE)
    assert os.read(reader, 9) == b"cold"
    process.close_stdio()
    node.do(lambda: None)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_input_that_is_over_before_all_streams_are_open(node: Node, tmp_path: Path) -> None:
    """A client's CloseIO may overtake us: what is forgotten then would never end."""
    os.mkfifo(tmp_path / "in")
    process = Process(Streams(str(tmp_path / "in"), "", "", False))
    process.close_stdin()
    stdio = process.open_stdio(node.host, {}, (0, 0))
    assert stdio._stdin_keeper is None
    process.close_stdio()


def test_nothing_happens_before_the_streams_are_open() -> None:
    process = Process(NULL)
    process.resize(80, 24)
    process.close_stdin()
    process.close_stdio()


def test_a_console_receives_what_runc_sends(tmp_path: Path) -> None:
    before = open_fds()
    with Console(str(tmp_path)) as console:
        master, terminal = os.openpty()

        def send() -> None:
            with socket.socket(socket.AF_UNIX) as runc:
                runc.connect(console.path)
                socket.send_fds(runc, [b"/dev/ptmx"], [master])

        sending = Behind(send)
        received = console.receive()
        sending.get()
        os.write(terminal, b"x")
        assert os.read(received, 1) == b"x"
        assert not os.get_inheritable(received)
        for fd in (master, terminal, received):
            os.close(fd)
    assert list(tmp_path.iterdir()) == []
    assert open_fds(before) == set()


def test_a_console_without_a_terminal(tmp_path: Path) -> None:
    with Console(str(tmp_path)) as console:
        with socket.socket(socket.AF_UNIX) as runc:
            runc.connect(console.path)
            runc.sendall(b"nothing")
        with pytest.raises(NotFound, match="no terminal arrived"):
            console.receive()


def test_a_state_folder_that_is_too_deep_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    before = open_fds()
    with pytest.raises(FailedPrecondition, match="a shorter `state` folder"):
        Console(str(folder))
    assert open_fds(before) == set()
