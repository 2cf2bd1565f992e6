"""Scripts about exec'd processes and streams. Each is played by any shim."""

from __future__ import annotations

import os

from drive.session import KILL, TERM, Session
from shim.proto import task_pb as pb
from shim.proto.known import type_name, unpack
from shim.proto.runc_pb import ProcessDetails

SLEEP = ("sleep", "1000")


def an_execs_life(s: Session) -> None:
    s.run("a", *SLEEP)
    s.exec("a", "x", "sh", "-c", "sleep 0.05; exit 3")
    s.exec("a", "x", "true")
    s.state("a", "x")
    s.kill("a", TERM, "x")
    s.call("CloseIO", pb.CloseIORequest(id="a", exec_id="x", stdin=True))
    s.call("ResizePty", pb.ResizePtyRequest(id="a", exec_id="x", width=80, height=24))
    waiter = s.waiting("a", "x")
    s.start("a", "x")
    s.tell("waiter", waiter.result(60).exit_status)
    s.state("a", "x")
    s.wait("a", "x")
    s.kill("a", TERM, "x")
    s.start("a", "x")
    s.call("ResizePty", pb.ResizePtyRequest(id="a", exec_id="x", width=80, height=24))
    s.delete("a", "x")
    s.state("a", "x")
    s.delete("a", "x")
    s.exec("a", "x", "true")  # the id is free again
    s.delete("a", "x")  # never started
    for call in (s.state, s.start, s.wait, s.delete):
        call("a", "unknown")
    s.kill("a", TERM, "unknown")
    s.call("CloseIO", pb.CloseIORequest(id="a", exec_id="unknown", stdin=True))
    s.end("a")
    s.tell_events("delete a")


def exec_statuses(s: Session) -> None:
    s.run("a", *SLEEP)
    for name, script in {"five": "exit 5", "zero": "true", "killed": "kill -9 $$"}.items():
        s.exec("a", name, "sh", "-c", script)
        s.start("a", name)
        s.wait("a", name)
        s.delete("a", name)
    s.exec("a", "signalled", *SLEEP)
    s.start("a", "signalled")
    s.state("a", "signalled")
    s.delete("a", "signalled")
    s.kill("a", TERM, "signalled")
    s.wait("a", "signalled")
    s.delete("a", "signalled")
    s.end("a")
    s.tell_events("delete a")


def an_exec_that_cannot_start(s: Session) -> None:
    """containerd's TestIssue10589: it stays CREATED, and who waits for it is told."""
    s.run("a", *SLEEP)
    s.exec("a", "x", "/no/such/program")
    waiter = s.waiting("a", "x")
    s.start("a", "x")
    s.tell("waiter", waiter.result(60).exit_status)
    s.state("a", "x")
    s.kill("a", TERM, "x")
    s.wait("a", "x")
    s.delete("a", "x")
    s.state("a", "x")
    s.end("a")
    s.tell_events("delete a")


def exec_before_start(s: Session) -> None:
    s.create("a", *SLEEP)
    s.exec("a", "x", "true")
    s.start("a", "x")
    s.wait("a", "x")
    s.start("a")
    s.state("a")
    s.end("a")
    s.tell_events("delete a")


def exec_while_paused(s: Session) -> None:
    s.run("a", *SLEEP)
    for name in ("running", "added"):
        s.exec("a", name, *SLEEP)
    s.start("a", "running")
    s.call("Pause", pb.PauseRequest(id="a"))
    s.exec("a", "refused", "true")
    s.state("a", "running")
    s.state("a", "added")
    s.state("a", "refused")
    s.delete("a", "added")
    s.call("Resume", pb.ResumeRequest(id="a"))
    s.state("a", "running")
    s.exec("a", "refused", "true")
    s.start("a", "refused")
    s.wait("a", "refused")
    s.end("a")
    s.wait("a", "running")
    s.tell_events("delete a")


def exec_after_the_end(s: Session) -> None:
    s.run("a", *SLEEP)
    s.exec("a", "added", "true")
    s.exec("a", "ran", "true")
    s.start("a", "ran")
    s.wait("a", "ran")
    s.kill("a", KILL)
    s.wait("a")
    s.exec("a", "late", "true")
    s.start("a", "added")
    s.state("a", "added")
    s.state("a", "ran")
    s.delete("a", "ran")
    s.delete("a", "added")
    s.delete("a")
    s.tell_events("delete a")


def who_is_in_it(s: Session) -> None:
    init = s.run("a", *SLEEP)
    s.exec("a", "x", *SLEEP)
    started = s.start("a", "x")
    assert started is not None
    answer = s.shim.call("Pids", pb.PidsRequest(id="a"), pb.PidsResponse)
    known = {init: "init", started.pid: "exec"}
    found = []
    for info in answer.processes:
        details = ""
        if info.info is not None:
            details = f"{type_name(info.info)} {unpack(info.info, ProcessDetails).exec_id}"
        found.append((known.get(info.pid, "other"), details))
    s.tell("pids", sorted(found))
    s.kill("a", KILL)
    s.wait("a")
    s.call("Pids", pb.PidsRequest(id="a"), pb.PidsResponse)


def input_and_output(s: Session) -> None:
    streams = s.streams("a", stdin=True)
    s.create("a", "sh", "-c", "cat; echo bad >&2; exit 4", **streams)
    with open(streams["stdin"], "wb") as file:
        s.start("a")
        s.state("a")
        file.write(b"hello\n" * 10000)
    for _ in range(2):
        s.call("CloseIO", pb.CloseIORequest(id="a", stdin=True))
    s.wait("a")
    s.delete("a")
    s.tell("out", s.outputs["a-out"].to_the_end() == b"hello\n" * 10000)
    s.tell("err", s.outputs["a-err"].to_the_end())


def input_outlives_a_client(s: Session) -> None:
    """containerd restarts, `ctr` detaches: the input goes on until CloseIO."""
    streams = s.streams("a", stdin=True)
    s.run("a", "cat", **streams)
    for text in (b"one\n", b"two\n"):
        with open(streams["stdin"], "wb") as file:
            file.write(text)
        s.outputs["a-out"].wait_for(text)
    s.call("CloseIO", pb.CloseIORequest(id="a", stdin=True))
    s.wait("a")
    s.delete("a")
    s.tell("out", s.outputs["a-out"].to_the_end())


def input_closed_before_it_is_written(s: Session) -> None:
    """CloseIO may overtake what a client has yet to write; the client's own end counts too."""
    streams = s.streams("a", stdin=True)
    s.run("a", "cat", **streams)
    with open(streams["stdin"], "wb") as file:
        s.call("CloseIO", pb.CloseIORequest(id="a", stdin=True))
        file.write(b"late\n")
    s.wait("a")
    s.delete("a")
    s.tell("out", s.outputs["a-out"].to_the_end())


def no_input_after_all(s: Session) -> None:
    s.run("a", "cat", **s.streams("a", stdin=True))
    s.call("CloseIO", pb.CloseIORequest(id="a", stdin=True))
    s.wait("a")


def an_execs_streams(s: Session) -> None:
    s.run("a", *SLEEP)
    streams = s.streams("x", stdin=True)
    s.exec("a", "x", "sh", "-c", "cat; echo bad >&2; exit 4", **streams)
    ours = os.open(streams["stdin"], os.O_RDWR)
    s.start("a", "x")
    s.state("a", "x")
    os.write(ours, b"hello\n")
    s.outputs["x-out"].wait_for(b"hello\n")
    s.call("CloseIO", pb.CloseIORequest(id="a", exec_id="x", stdin=True))
    os.close(ours)
    s.wait("a", "x")
    s.delete("a", "x")
    s.tell("out", s.outputs["x-out"].to_the_end())
    s.tell("err", s.outputs["x-err"].to_the_end())


def a_terminal(s: Session) -> None:
    streams = s.streams("a", stdin=True, terminal=True)
    ours = os.open(streams["stdin"], os.O_RDWR)
    s.create("a", "sh", "-c", "read x; stty size; exit 6", **streams)
    s.call("ResizePty", pb.ResizePtyRequest(id="a", width=91, height=37))
    s.start("a")
    s.state("a")
    os.write(ours, b"go\n")
    s.wait("a")
    os.close(ours)
    s.delete("a")
    s.tell("out", s.outputs["a-out"].to_the_end())


def an_execs_terminal(s: Session) -> None:
    s.run("a", *SLEEP)
    streams = s.streams("x", stdin=True, terminal=True)
    ours = os.open(streams["stdin"], os.O_RDWR)
    s.exec("a", "x", "sh", "-c", "read x; stty size; tty", **streams)
    s.start("a", "x")
    s.state("a", "x")
    s.call("ResizePty", pb.ResizePtyRequest(id="a", exec_id="x", width=91, height=37))
    s.call("ResizePty", pb.ResizePtyRequest(id="a", width=91, height=37))  # init has none
    os.write(ours, b"go\n")
    s.wait("a", "x")
    os.close(ours)
    s.delete("a", "x")
    s.tell("out", s.outputs["x-out"].to_the_end())


def much_output(s: Session) -> None:
    """Delete waits for output that still comes."""
    s.run("a", "sh", "-c", "yes | head -c 10000000; yes n | head -c 3000000 >&2", **s.streams("a"))
    s.wait("a")
    s.delete("a")
    s.tell("bytes", [len(s.outputs[f"a-{name}"].to_the_end()) for name in ("out", "err")])


def output_that_outlives_init(s: Session) -> None:
    """A process that init left behind holds the pipe; with a pid namespace it ends with init."""
    s.run("a", "sh", "-c", "(sleep 1000; echo never) & echo over", **s.streams("a"))
    s.wait("a")
    s.delete("a")
    s.tell("out", s.outputs["a-out"].to_the_end())


def streams_that_are_not_there(s: Session) -> None:
    s.create("a", *SLEEP, stdout="/no/such/fifo")
    s.state("a")
    s.create("b", *SLEEP, stdout="gopher://x")
    s.state("b")
