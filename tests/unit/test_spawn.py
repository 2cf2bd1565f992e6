"""Programs are started with what they are given and nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from fakes.host import open_fds

from shim.spawn import Capture, exit_status, find, run, spawn

ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def sh(script: str) -> bytes:
    done = run(["sh", "-c", script], ENV)
    assert done.status == 0, done.text
    return done.output


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137)]
)
def test_status(script: str, status: int) -> None:
    assert run(["sh", "-c", script], ENV).status == status


def test_exit_status_of_a_wait_status() -> None:
    assert exit_status(7 << 8) == 7
    assert exit_status(signal.SIGTERM) == 143
    assert exit_status(signal.SIGSEGV | 0x80) == 139, "dumped core"


def test_both_outputs_together() -> None:
    done = run(["sh", "-c", "echo out; echo err >&2; printf '\\377'"], ENV)
    assert done.output == b"out\nerr\n\xff"
    assert done.text == "out\nerr\n\N{REPLACEMENT CHARACTER}"


def test_much_output_does_not_block() -> None:
    done = run(["sh", "-c", "head -c 3000000 /dev/zero; echo end"], ENV)
    assert done.output.endswith(b"end\n")
    assert len(done.output) == 1 << 20, "the last of it"


def test_a_capture_gives_its_memory_back() -> None:
    before = open_fds()
    with Capture() as capture:
        os.write(capture.fds[1], b"12345")
        assert capture.read(3) == b"345"
    assert open_fds(before) == set()


def test_only_named_descriptors_are_inherited() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, False)
    listing = sh("ls /proc/self/fd").split()
    ours = {b"%d" % fd for fd in open_fds() if os.get_inheritable(fd)}  # of whoever started us
    assert set(listing) - ours <= {b"0", b"1", b"2", b"3"}, "and the one that ls has open"
    os.close(read)
    os.close(write)


def test_alone_it_has_not_even_what_others_get() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    script = f"if [ -e /proc/self/fd/{write} ]; then echo there; else echo not; fi"
    with Capture() as capture:
        named = {**capture.fds, write: capture.fds[1]}
        for fds, alone in ((capture.fds, False), (capture.fds, True), (named, True)):
            os.waitpid(spawn(["sh", "-c", script], ENV, fds, alone=alone), 0)
        assert capture.read().split() == [b"there", b"not", b"there"]
    assert os.get_inheritable(write)
    os.close(read)
    os.close(write)


def test_unnamed_streams_are_null() -> None:
    out = sh("readlink /proc/self/fd/0").strip()
    assert out == b"/dev/null"
    with Capture() as capture:
        pid = spawn(["readlink", "/proc/self/fd/0", "/proc/self/fd/2"], ENV, {1: capture.fds[1]})
        os.waitpid(pid, 0)
        assert capture.read().split() == [b"/dev/null", b"/dev/null"]


def test_descriptors_may_change_places() -> None:
    """A naive dup2 after another would overwrite what the next one needs."""
    one, two = os.memfd_create("one"), os.memfd_create("two")
    low, high = sorted((one, two))
    script = f"echo high >&{low}; echo low >&{high}"
    pid = spawn(["bash", "-c", script], ENV, {low: high, high: low})
    assert os.waitpid(pid, 0)[1] == 0
    assert os.pread(high, 9, 0) == b"high\n"
    assert os.pread(low, 9, 0) == b"low\n"
    os.close(one)
    os.close(two)


def test_a_number_that_is_free_here_is_not_overwritten_on_its_way() -> None:
    """The copies that are made for the child must stay clear of every number it asked for."""
    with Capture() as one, Capture() as two:
        free = [fd for fd in range(3, 200) if fd not in open_fds()][1]
        fds = {free: one.fds[1], 201: two.fds[1]}
        pid = spawn(["bash", "-c", f"echo one >&{free}; echo two >&201"], ENV, fds)
        assert os.waitpid(pid, 0)[1] == 0
        assert (one.read(), two.read()) == (b"one\n", b"two\n")


def test_one_descriptor_twice() -> None:
    with Capture() as capture:
        fd = capture.fds[1]
        pid = spawn(["sh", "-c", "echo a >&7; echo b >&9"], ENV, {7: fd, 9: fd})
        assert os.waitpid(pid, 0)[1] == 0
        assert capture.read() == b"a\nb\n"


def test_no_descriptor_is_left_over() -> None:
    before = open_fds()
    run(["true"], ENV)
    with pytest.raises(FileNotFoundError):
        run(["nowhere"], ENV)
    with pytest.raises(PermissionError):
        run(["/etc/passwd"], ENV)
    assert open_fds(before) == set()


def test_signals_are_as_a_program_expects_them() -> None:
    """The daemon ignores SIGPIPE; a child that did would never end with its reader."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        lines = dict(
            line.split(":\t")
            for line in sh("cat /proc/self/status").decode().splitlines()
            if line.startswith(("SigIgn", "SigBlk"))
        )
    finally:
        signal.signal(signal.SIGPIPE, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert int(lines["SigBlk"], 16) == 0
    assert not int(lines["SigIgn"], 16) & (1 << (signal.SIGPIPE - 1))


def test_groups() -> None:
    with Capture() as capture:
        pid = spawn(["sh", "-c", "exec sleep 1000"], ENV, capture.fds, group=True)
        assert os.getpgid(pid) == pid
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pid = spawn(["sleep", "1000"], ENV, capture.fds)
        assert os.getpgid(pid) == os.getpgrp()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_environment_is_what_was_given() -> None:
    assert b"ONLY=this" in run(["env"], {**ENV, "ONLY": "this"}).output.split()
    assert b"HOME" not in run(["env"], ENV).output


def test_finding(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder, mode in (("a", 0o644), ("b", 0o755)):
        (tmp_path / folder / "tool").touch()
        (tmp_path / folder / "tool").chmod(mode)
    path = f"{tmp_path}/a::{tmp_path}/b"
    assert find("tool", path) == f"{tmp_path}/b/tool", "only what can be executed"
    assert find("./here", path) == "./here"
    with pytest.raises(FileNotFoundError, match="no such program in PATH") as missing:
        find("none", path)
    assert missing.value.filename == "none"


def test_a_folder_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "a/runc").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/runc").touch(mode=0o755)
    assert find("runc", f"{tmp_path}/a:{tmp_path}/b") == f"{tmp_path}/b/runc"
