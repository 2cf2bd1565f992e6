"""A host name is written into a UTS namespace, from outside."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.restore.hostname import set_hostname


@pytest.fixture
def uts() -> Iterator[int]:
    """A process in a UTS namespace of its own."""
    process = subprocess.Popen(
        ["unshare", "--uts", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.stdin.close()
    process.stdout.close()
    process.wait()


def name_in(pid: int) -> str:
    call = ["nsenter", "--uts", "--target", str(pid), "uname", "-n"]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_set_in_another_namespace_only(uts: int) -> None:
    before = socket.gethostname()
    set_hostname(f"/proc/{uts}/ns/uts", "of-the-pod")
    assert name_in(uts) == "of-the-pod"
    assert socket.gethostname() == before, "this process stays where it is"


def test_what_is_no_namespace(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        set_hostname(str(tmp_path / "none"), "x")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="setns") as caught:
        set_hostname(str(tmp_path / "file"), "x")
    assert caught.value.filename == str(tmp_path / "file")
