"""Logging programs: containerd's contract, and programs that do not keep it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.host import Node, open_fds

from shim.errors import InvalidArgument, Unavailable
from shim.task import binaryio
from shim.task.binaryio import LoggingProgram, is_binary

ENV = {"PATH": "/usr/bin:/bin", "CONTAINER_ID": "c1"}


def program(folder: Path, script: str) -> str:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_which_streams_are_programs() -> None:
    assert is_binary("binary:///bin/x")
    assert is_binary("binary-v2:///bin/x")
    assert not is_binary("/run/fifo")
    assert not is_binary("file:///bin/x")


def test_arguments_come_from_the_query_in_its_order() -> None:
    assert binaryio._argv("binary:///bin/x?b=1&a=two%20words&flag") == [
        *("/bin/x", "b", "1", "a", "two words", "flag")
    ]
    with pytest.raises(InvalidArgument, match="no absolute path"):
        binaryio._argv("binary://x")


def test_a_closed_ready_pipe_is_enough_for_version_one(node: Node, tmp_path: Path) -> None:
    path = program(tmp_path, "exec 5>&-; cat <&3 >/dev/null")
    LoggingProgram(node.reaper, f"binary://{path}", ENV, terminal=False).close()


def test_version_two_wants_a_byte(node: Node, tmp_path: Path) -> None:
    before = open_fds()
    path = program(tmp_path, "exec 5>&-; cat <&3 >/dev/null")
    with pytest.raises(Unavailable, match="before it was ready"):
        LoggingProgram(node.reaper, f"binary-v2://{path}", ENV, terminal=False)
    assert open_fds(before) == set()


def test_version_two_with_its_byte(node: Node, tmp_path: Path) -> None:
    path = program(tmp_path, "printf 1 >&5; cat <&3 >/dev/null")
    LoggingProgram(node.reaper, f"binary-v2://{path}", ENV, terminal=False).close()


def test_a_program_that_is_never_ready(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaryio, "READY_TIMEOUT", 0.01)
    before = open_fds()
    path = program(tmp_path, "cat <&3 >/dev/null")
    with pytest.raises(Unavailable, match="was not ready"):
        LoggingProgram(node.reaper, f"binary://{path}", ENV, terminal=False)
    assert open_fds(before) == set()


def test_a_program_that_will_not_end_is_made_to(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaryio, "END_TIMEOUT", 0.01)
    os.mkfifo(tmp_path / "never")
    path = program(
        tmp_path, f"trap '' TERM; exec 5>&-; while :; do read x <> {tmp_path}/never; done"
    )
    logger = LoggingProgram(node.reaper, f"binary://{path}", ENV, terminal=False)
    logger.close()
    assert logger._ended.wait(15), "SIGKILL comes last"


def test_a_program_that_is_not_there(node: Node, tmp_path: Path) -> None:
    before = open_fds()
    with pytest.raises(FileNotFoundError):
        LoggingProgram(node.reaper, f"binary://{tmp_path}/none", ENV, terminal=False)
    assert open_fds(before) == set()
