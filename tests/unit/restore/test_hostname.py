"""A host name is read from specs and written into a UTS namespace, from outside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.bundle import Bundle
from shim.errors import InvalidArgument
from shim.restore.hostname import hostname_of, set_hostname

SANDBOX_ID = "io.kubernetes.cri.sandbox-id"


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


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "sandbox" / "config.json").write_text(json.dumps({"hostname": "sandboxes"}))
    return Bundle(str(tmp_path / "c"))


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({}, ""),
        ({"hostname": "own"}, "own"),
        ({"annotations": None}, ""),
        ({"annotations": {SANDBOX_ID: "sandbox"}}, "sandboxes"),
        ({"annotations": {SANDBOX_ID: "sandbox"}, "hostname": "own"}, "own"),
    ],
)
def test_whose_name(bundle: Bundle, spec: dict[str, Any], name: str) -> None:
    assert hostname_of(spec, bundle) == name


def test_a_sandbox_without_a_name(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "sandbox" / "config.json").write_text("{}")
    assert hostname_of({"annotations": {SANDBOX_ID: "sandbox"}}, bundle) == ""


def test_a_sandbox_that_is_gone(bundle: Bundle) -> None:
    with pytest.raises(InvalidArgument, match=r"gone/config\.json"):
        hostname_of({"annotations": {SANDBOX_ID: "gone"}}, bundle)
