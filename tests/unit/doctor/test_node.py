"""The questions to a real node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.config import Config
from shim.doctor import node as nodes
from shim.doctor.node import Node


def test_files_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "x").write_bytes(b"a\xff\n")
    assert Node(Config(), root=tmp_path).read("/proc/x") == "a\ufffd"
    with pytest.raises(FileNotFoundError):
        Node(Config(), root=tmp_path).read("/proc/y")


def test_programs() -> None:
    node = Node(Config())
    assert node.run("sh", "-c", "echo said; echo more >&2; exit 3") == (3, "said\nmore")
    with pytest.raises(FileNotFoundError):
        node.run("no-such-program")
    assert node.user == os.geteuid()


def test_a_program_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_PATIENCE", 0.05)
    status, said = Node(Config()).run("sleep", "60")
    assert status
    assert "no end" in said


def test_the_configured_criu_comes_first() -> None:
    assert Node(Config({"criu": "/x/criu"})).env["PATH"].startswith("/x:")


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        _ = Node(Config(), address=str(tmp_path / "none")).daemon
