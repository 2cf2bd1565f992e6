"""What is asked of containerd, against a gRPC server that answers as one does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.settled import PATIENCE

from shim.doctor import daemon as daemons
from shim.doctor.daemon import Daemon

VERSION = b"\x0a\x05v9.9.9"[:2] + b"9.9.9"
CRI: dict[str, dict[str, object]] = {"containerd": {"runtimes": {}}}


def _block(number: int, data: bytes) -> bytes:
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


def _status(_request: bytes, _context: Any) -> bytes:
    text = json.dumps(CRI).encode()
    return _block(1, b"") + _block(2, _block(1, b"config") + _block(2, text))


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(daemons, "TIMEOUT", PATIENCE)
    path = str(tmp_path / "containerd.sock")
    server = grpc.server(ThreadPoolExecutor(1))

    def answering(name: str, method: str, answer: Any) -> None:
        handler = grpc.unary_unary_rpc_method_handler(answer)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {method: handler}),)
        )

    answering("containerd.services.version.v1.Version", "Version", lambda *_: VERSION)
    answering("runtime.v1.RuntimeService", "Status", _status)
    server.add_insecure_port(f"unix://{path}")
    server.start()
    yield path
    server.stop(0).wait()


def test_a_running_one(address: str) -> None:
    daemon = Daemon(address)
    assert daemon.pid == os.getpid()
    assert daemon.version() == "9.9.9"
    assert daemon.cri() == CRI
    wanted = Path("/proc/self/environ").read_bytes().partition(b"\0PATH=")[2].partition(b"\0")[0]
    assert daemon.search_path() == [p for p in wanted.decode().split(":") if p]


def test_a_service_that_it_has_not(address: str) -> None:
    daemon = Daemon(address)
    daemon.address = address + ".other"
    with pytest.raises(OSError, match="Version/Version"):
        daemon.version()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Daemon(str(tmp_path / "none"))
