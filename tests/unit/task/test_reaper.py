"""Real children of the test process, collected by the daemon's reaper."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.host import Node
from fakes.settled import PATIENCE

from shim.spawn import spawn
from shim.task.reaper import Exit

SH = "/bin/sh"
ENV = {"PATH": "/usr/bin:/bin"}


class Ends:
    """Exits as they are reported, by name."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self._changed = threading.Condition()

    def of(self, name: str) -> Callable[[Exit], None]:
        def ended(exit: Exit) -> None:
            with self._changed:
                self.seen.append((name, exit.status))
                self._changed.notify_all()

        return ended

    def wait(self, count: int) -> list[tuple[str, int]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, PATIENCE)
            return self.seen


def sh(script: str) -> int:
    """A child that nobody has claimed."""
    return spawn([SH, "-c", script], ENV, {})


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)],
)
def test_the_status_is_containerds(node: Node, script: str, status: int) -> None:
    assert node.reaper.run([SH, "-c", script], ENV).status == status


def test_run_gives_both_outputs(node: Node) -> None:
    done = node.reaper.run([SH, "-c", "echo out; echo err >&2"], ENV)
    assert done.text == "out\nerr"


def test_run_with_descriptors_captures_nothing(node: Node) -> None:
    read, write = os.pipe()
    done = node.reaper.run([SH, "-c", "echo hello >&7"], ENV, {7: write})
    os.close(write)
    assert (os.read(read, 99), done.text) == (b"hello\n", "")
    os.close(read)


def test_a_program_that_is_not_there(node: Node) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        node.reaper.run(["nowhere"], ENV)


def test_an_exit_before_the_claim_is_kept(node: Node) -> None:
    ends = Ends()
    with node.reaper.early():
        pid = sh("exit 3")
        node.until(lambda: not os.path.exists(f"/proc/{pid}"))  # reaped, and nobody knows it
        node.reaper.claim(pid, ends.of("early"))
    assert ends.wait(1) == [("early", 3)]


def test_scopes_nest_and_the_last_one_clears(node: Node) -> None:
    ends = Ends()
    with node.reaper.early():
        with node.reaper.early():
            pid = sh("exit 4")
            node.until(lambda: not os.path.exists(f"/proc/{pid}"))
        node.reaper.claim(pid, ends.of("kept"))
        other = sh("exit 5")
        node.until(lambda: not os.path.exists(f"/proc/{other}"))
    assert ends.wait(1) == [("kept", 4)]
    with node.reaper.early():
        node.reaper.claim(other, ends.of("forgotten"))
    node.do(lambda: None)
    assert ends.seen == [("kept", 4)], "a pid may have another owner by now"


def test_an_unclaimed_orphan_is_reaped(node: Node) -> None:
    ends = Ends()
    pid = sh("exit 0")
    node.until(lambda: not os.path.exists(f"/proc/{pid}"))
    with node.reaper.early():
        node.reaper.claim(pid, ends.of("too late"))
    node.do(lambda: None)
    assert ends.seen == [], "nobody had said that it would be asked for"


def test_an_orphan_of_a_child_is_ours(node: Node, tmp_path: Path) -> None:
    """As a container's init is: runc creates it, and exits."""
    ends = Ends()
    script = f"(read x < {tmp_path}/gate; exit 9) & echo $! > {tmp_path}/pid"
    os.mkfifo(tmp_path / "gate")
    with node.reaper.early():
        node.reaper.run([SH, "-c", script], ENV)
        pid = int((tmp_path / "pid").read_text())
        node.reaper.claim(pid, ends.of("orphan"))
    (tmp_path / "gate").write_text("go\n")
    assert ends.wait(1) == [("orphan", 9)]


def test_no_status_is_lost_under_two_hundred_children(node: Node) -> None:
    ends = Ends()

    def start(first: int) -> None:
        for number in range(first, 200, 4):
            argv = [SH, "-c", f"exit {number}"]
            node.reaper.start(argv, ENV, {}, ends.of(str(number)))

    threads = [threading.Thread(target=start, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    wanted = sorted((str(number), number) for number in range(200))
    assert sorted(ends.wait(200)) == wanted
    node.do(lambda: None)
    assert len(ends.seen) == 200, "each once"


def test_a_callback_that_fails_does_not_hide_other_exits(node: Node) -> None:
    ends = Ends()
    entered, held = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        held.wait(PATIENCE)

    node.loop.call_soon(hold)  # both end within one round
    assert entered.wait(PATIENCE)

    def fail(_exit: Exit) -> None:
        raise RuntimeError("on purpose")

    first = node.reaper.start([SH, "-c", "exit 1"], ENV, {}, fail)
    wait_for_zombie(first)
    second = node.reaper.start([SH, "-c", "exit 2"], ENV, {}, ends.of("second"))
    wait_for_zombie(second)
    held.set()
    assert ends.wait(1) == [("second", 2)]
    assert [str(error) for error in node.errors] == ["on purpose"]
    node.errors.clear()


def wait_for_zombie(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_kill_reaches_a_child_that_has_not_been_reaped(node: Node) -> None:
    ends = Ends()
    pid = node.reaper.start(["sleep", "1000"], ENV, {}, ends.of("sleep"))
    assert node.reaper.kill(pid, signal.SIGTERM)
    assert ends.wait(1) == [("sleep", 143)]


def test_kill_never_touches_a_pid_that_is_nobodys_child_of_ours(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = Ends()
    pid = node.reaper.start([SH, "-c", "exit 0"], ENV, {}, ends.of("gone"))
    ends.wait(1)
    signalled: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *args: signalled.append(args))
    monkeypatch.setattr(os, "killpg", lambda *args: signalled.append(args))
    assert not node.reaper.kill(pid, signal.SIGKILL)
    assert not node.reaper.kill(os.getpid(), signal.SIGKILL)
    assert not node.reaper.kill(pid, signal.SIGKILL, group=True)
    assert signalled == []


def test_kill_and_reap_exclude_each_other(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the claim and the signal, the pid must not be reaped and given away."""
    ends = Ends()
    pid = node.reaper.start(["sleep", "1000"], ENV, {}, ends.of("sleep"))
    real = os.kill
    states: list[bool] = []

    def slow_kill(target: int, signum: int) -> None:
        real(target, signal.SIGKILL)
        wait_for_zombie(target)
        node.loop.call_soon(node.reaper.reap)  # it has every chance now
        states.append(os.path.exists(f"/proc/{target}"))
        real(target, signum)  # would raise, or hit a stranger, had it been reaped

    monkeypatch.setattr(os, "kill", slow_kill)
    assert node.reaper.kill(pid, signal.SIGTERM)
    assert states == [True]
    assert ends.wait(1) == [("sleep", 137)]


def test_a_group_goes_together(node: Node, tmp_path: Path) -> None:
    ends = Ends()
    os.mkfifo(tmp_path / "ready")
    script = f"sleep 1000 & echo $! > {tmp_path}/ready; wait"
    argv = [SH, "-c", script]
    leader = node.reaper.start(argv, ENV, {}, ends.of("leader"), group=True)
    child = int((tmp_path / "ready").read_text())
    assert os.getpgid(child) == leader
    assert node.reaper.kill(leader, signal.SIGKILL, group=True)
    assert ends.wait(1) == [("leader", 137)]
    node.until(lambda: not os.path.exists(f"/proc/{child}"))


def test_children_that_ended_before_the_reaper_was_there(tmp_path: Path) -> None:
    pid = sh("exit 0")
    wait_for_zombie(pid)
    node = Node(tmp_path)
    try:
        node.until(lambda: not os.path.exists(f"/proc/{pid}"))
    finally:
        node.stop()


def test_when_it_ended(node: Node) -> None:
    moments: list[int] = []
    done = threading.Event()

    def ended(exit: Exit) -> None:
        moments.append(exit.at)
        done.set()

    before = time.time_ns()
    node.reaper.start([SH, "-c", "exit 0"], ENV, {}, ended)
    assert done.wait(PATIENCE)
    assert before <= moments[0] <= time.time_ns()
