"""Streams as containerd names them, with the test in the place of both containerd and container."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from pathlib import Path

import pytest
from fakes.host import Node, open_fds
from fakes.settled import PATIENCE

from shim.errors import InvalidArgument
from shim.task import binaryio
from shim.task.copying import CHUNK
from shim.task.stdio import Stdio, Streams

ENV = {"PATH": "/usr/bin:/bin"}


def stdio(
    node: Node, stdin: str = "", stdout: str = "", stderr: str = "", terminal: bool = False
) -> Stdio:
    return Stdio(node.loop, node.reaper, Streams(stdin, stdout, stderr, terminal), ENV)


def fifo(folder: Path, name: str) -> str:
    os.mkfifo(folder / name)
    return str(folder / name)


def reader_of(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    return fd


def take_child(opened: Stdio, number: int) -> int:
    """The container's end, as if it had been inherited; the shim's copy is closed after that."""
    return os.dup(opened.child_fds[number])


def test_output_goes_through_fifos(node: Node, tmp_path: Path) -> None:
    out, err = fifo(tmp_path, "out"), fifo(tmp_path, "err")
    opened = stdio(node, stdout=out, stderr="fifo://" + err)
    readers = reader_of(out), reader_of(err)
    children = take_child(opened, 1), take_child(opened, 2)
    opened.started()
    os.write(children[0], b"to out")
    os.write(children[1], b"to err")
    assert (os.read(readers[0], 99), os.read(readers[1], 99)) == (b"to out", b"to err")
    for fd in children:
        os.close(fd)
    assert [os.read(fd, 99) for fd in readers] == [b"", b""], "the end comes through"
    opened.drain(PATIENCE)
    opened.close()
    for fd in readers:
        os.close(fd)


def test_a_reader_goes_and_comes_back(node: Node, tmp_path: Path) -> None:
    """containerd restarts: the container neither blocks nor dies, and nothing is lost."""
    out = fifo(tmp_path, "out")
    opened = stdio(node, stdout=out)
    child = take_child(opened, 1)
    opened.started()
    reader = reader_of(out)
    os.write(child, b"before ")
    assert os.read(reader, 99) == b"before "
    os.close(reader)
    os.write(child, b"between ")
    os.write(child, b"and after")
    node.do(lambda: None)
    reader = reader_of(out)
    got = b""
    while len(got) < len(b"between and after"):
        got += os.read(reader, 99)
    assert got == b"between and after"
    os.close(child)
    assert os.read(reader, 99) == b""
    os.close(reader)
    opened.close()


def test_input_comes_through_a_fifo(node: Node, tmp_path: Path) -> None:
    name = fifo(tmp_path, "in")
    opened = stdio(node, stdin=name)
    child = take_child(opened, 0)
    opened.started()
    with open(name, "wb", 0) as client:
        client.write(b"hello")
        assert os.read(child, 99) == b"hello"
    node.do(lambda: None)
    with open(name, "wb", 0) as client:  # containerd was restarted
        client.write(b"again")
        assert os.read(child, 99) == b"again", "a client that goes is not the end"
    opened.close_stdin()
    assert os.read(child, 99) == b"", "CloseIO is"
    os.close(child)
    opened.close()


def test_close_stdin_delivers_what_was_written(node: Node, tmp_path: Path) -> None:
    name = fifo(tmp_path, "in")
    opened = stdio(node, stdin=name)
    child = take_child(opened, 0)
    opened.started()
    with open(name, "wb", 0) as client:
        client.write(b"the last line\n")
        opened.close_stdin()
        opened.close_stdin()  # again is harmless
    with open(child, "rb") as container:
        assert container.read() == b"the last line\n", "and its end"
    opened.close()


def test_held_output_is_passed_on_or_dropped(node: Node, tmp_path: Path) -> None:
    """What CRIU writes into the container's log while it fails is not the container's."""
    out = fifo(tmp_path, "out")
    reader = reader_of(out)
    os.set_blocking(reader, False)
    for keep in (False, True):
        streams = Streams("", out, "", False)
        opened = Stdio(node.loop, node.reaper, streams, ENV, held=True)
        child = take_child(opened, 1)
        opened.started()
        os.write(child, b"held")
        os.close(child)
        node.do(lambda: None)
        # "End", not "nothing yet": a containerd that restarts waits for the end of the streams.
        assert os.read(reader, 99) == b""
        if keep:
            opened.release()
            opened.drain(PATIENCE)
            assert os.read(reader, 99) == b"held"
        opened.drain(0)
        opened.close()
        node.do(lambda: None)
        assert os.read(reader, 99) == b""
    os.close(reader)


def test_who_is_held_back_need_not_wait(node: Node, tmp_path: Path) -> None:
    """A worker that says much when it is resumed would not come to its canary."""
    out = fifo(tmp_path, "out")
    reader = reader_of(out)
    opened = Stdio(node.loop, node.reaper, Streams("", out, "", False), ENV, held=True)
    child = take_child(opened, 1)
    opened.started()
    os.set_blocking(child, False)
    text = b"much\n" * 100_000
    assert os.write(child, text) == len(text)
    opened.release()
    with open(reader, "rb") as containerd:
        assert containerd.read(len(text)) == text
        os.close(child)
        opened.drain(PATIENCE)
        opened.close()


def test_it_is_an_ordinary_pipe_from_then_on(node: Node, tmp_path: Path) -> None:
    """What all pipes of a user take together is limited, and other users' would get smaller."""
    opened = Stdio(
        node.loop, node.reaper, Streams("", fifo(tmp_path, "out"), "", False), ENV, held=True
    )
    child = take_child(opened, 1)
    opened.started()
    opened.release()
    assert fcntl.fcntl(child, fcntl.F_GETPIPE_SZ) == CHUNK
    os.close(child)
    opened.drain(PATIENCE)
    opened.close()


def test_a_file_is_appended_to(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "log"
    for text in (b"one\n", b"two\n"):
        opened = stdio(node, stdout=f"file://{path}", stderr=f"file://{path}?x=y")
        child = take_child(opened, 1)
        opened.started()
        os.write(child, text)
        os.close(child)
        opened.drain(PATIENCE)
        opened.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_plain_path_may_be_a_file(node: Node, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"old ")
    opened = stdio(node, stdout=str(tmp_path / "log"))
    child = take_child(opened, 1)
    opened.started()
    os.write(child, b"new")
    os.close(child)
    opened.drain(PATIENCE)
    opened.close()
    assert (tmp_path / "log").read_bytes() == b"old new"


def test_nothing_is_wanted(node: Node) -> None:
    opened = stdio(node)
    assert opened.streams.null
    assert opened.child_fds == {}
    opened.close_stdin()
    opened.resize(80, 24)
    opened.drain(0)
    opened.close()


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_stream_that_cannot_be_opened_leaves_no_descriptor(
    node: Node, tmp_path: Path, stream: str
) -> None:
    good = fifo(tmp_path, "good")
    before = open_fds()
    names = {"stdin": good, "stdout": good, "stderr": good, stream: str(tmp_path / "missing")}
    with pytest.raises(FileNotFoundError, match="missing"):
        stdio(node, **names)  # type: ignore[arg-type]
    node.do(lambda: None)
    assert open_fds(before) == set()


def test_an_unknown_scheme_is_named(node: Node) -> None:
    before = open_fds()
    with pytest.raises(InvalidArgument, match="npipe://x"):
        stdio(node, stdout="npipe://x")
    node.do(lambda: None)
    assert open_fds(before) == set()


def test_close_gives_back_every_descriptor(node: Node, tmp_path: Path) -> None:
    before = open_fds()
    opened = stdio(node, fifo(tmp_path, "in"), fifo(tmp_path, "out"), fifo(tmp_path, "err"))
    assert set(opened.child_fds) == {0, 1, 2}
    opened.close()
    opened.close()
    node.do(lambda: None)
    assert open_fds(before) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_pipes_belong_to_the_configured_owner(node: Node, tmp_path: Path) -> None:
    streams = Streams("", fifo(tmp_path, "out"), "", False)
    opened = Stdio(node.loop, node.reaper, streams, ENV, (1234, 4321))
    info = os.fstat(opened.child_fds[1])
    assert (info.st_uid, info.st_gid) == (1234, 4321)
    opened.close()


def test_a_terminal_has_no_stderr_and_both_ways(node: Node, tmp_path: Path) -> None:
    opened = stdio(node, fifo(tmp_path, "in"), fifo(tmp_path, "out"), "ignored", terminal=True)
    assert opened.streams.stderr == ""
    assert opened.child_fds == {}
    master, terminal = os.openpty()
    attributes = termios.tcgetattr(terminal)
    attributes[1] &= ~termios.OPOST
    attributes[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    opened.attach_console(master)
    opened.resize(132, 50)
    size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
    assert struct.unpack("HHHH", size)[:2] == (50, 132)
    reader = reader_of(str(tmp_path / "out"))
    os.write(terminal, b"$ ")
    assert os.read(reader, 99) == b"$ "
    with open(tmp_path / "in", "wb", 0) as client:
        client.write(b"ls")
        assert os.read(terminal, 99) == b"ls"
    os.close(terminal)
    assert os.read(reader, 99) == b""
    opened.drain(PATIENCE)
    opened.close()
    os.close(reader)


LOGGER = """#!/bin/sh
echo "$@ $CONTAINER_ID" > {folder}/arguments
{ready}
exec 5>&-
cat <&3 > {folder}/out &
cat <&4 > {folder}/err
wait
"""


def logger(folder: Path, ready: str = "printf x >&5") -> str:
    path = folder / "logger"
    path.write_text(LOGGER.format(folder=folder, ready=ready))
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logging program has all its time to write out what it has."""
    monkeypatch.setattr(binaryio, "READY_TIMEOUT", PATIENCE)
    monkeypatch.setattr(binaryio, "END_TIMEOUT", PATIENCE)


@pytest.mark.usefixtures("patient")
def test_a_logging_program_gets_both_streams(node: Node, tmp_path: Path) -> None:
    before = open_fds()
    opened = stdio(node, stdout=f"binary://{logger(tmp_path)}?id=7")
    children = take_child(opened, 1), take_child(opened, 2)
    opened.started()
    os.write(children[0], b"to out")
    os.write(children[1], b"to err")
    for fd in children:
        os.close(fd)
    opened.close()  # waits for the program
    assert (tmp_path / "out").read_bytes() == b"to out"
    assert (tmp_path / "err").read_bytes() == b"to err"
    assert (tmp_path / "arguments").read_text().split()[:2] == ["id", "7"]
    assert open_fds(before) == set()


@pytest.mark.usefixtures("patient")
def test_a_logging_program_reads_a_terminal(node: Node, tmp_path: Path) -> None:
    opened = stdio(node, stdout=f"binary://{logger(tmp_path)}", terminal=True)
    master, terminal = os.openpty()
    opened.attach_console(master)
    opened.started()
    os.write(terminal, b"from a terminal")
    os.close(terminal)
    opened.drain(PATIENCE)
    opened.close()
    assert (tmp_path / "out").read_bytes() == b"from a terminal"
