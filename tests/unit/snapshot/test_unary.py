"""Calls without the gRPC library: against a server that has it, and against worse ones."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.snapshot.unary import Connection, Unanswered

METHOD = "/some.Service/Do"
PATIENCE = 30.0


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "server.sock")


@pytest.fixture
def server(address: str) -> Iterator[list[dict[str, Any]]]:
    """Answers a message with itself; what it was asked. `fail`, `none`, `large` are different."""
    asked: list[dict[str, Any]] = []

    def do(message: bytes, context: Any) -> bytes:
        asked.append(dict(context.invocation_metadata()) | {"seconds": context.time_remaining()})
        if message == b"fail":
            context.abort(grpc.StatusCode.NOT_FOUND, "there is none")
        return {b"none": b"", b"large": bytes(3 << 20), b"larger": bytes(5 << 20)}.get(
            message, message
        )

    made = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(do)
    made.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("some.Service", {"Do": handler}),)
    )
    made.add_insecure_port(f"unix://{address}")
    made.start()
    yield asked
    made.stop(None).wait()


def test_calls_one_after_the_other(server: list[dict[str, Any]], address: str) -> None:
    with Connection(address, PATIENCE) as connection:
        assert connection.call(METHOD, b"one", {"containerd-namespace": "k8s.io"}) == b"one"
        assert connection.call(METHOD, b"none", {"long": "x" * 1000}) == b""
        assert connection.call(METHOD, b"large", {"longer": "y" * 127}) == bytes(3 << 20)
    assert [asked.get("containerd-namespace") for asked in server] == ["k8s.io", None, None]
    assert server[1]["long"] == "x" * 1000
    assert server[2]["longer"] == "y" * 127
    assert all(0 < asked["seconds"] <= PATIENCE for asked in server)


@pytest.mark.parametrize("message", [b"fail", b"larger", b"x" * 20_000])
def test_what_the_library_shall_do(
    server: list[dict[str, Any]], address: str, message: bytes
) -> None:
    with Connection(address, PATIENCE) as connection, pytest.raises(Unanswered):
        connection.call(METHOD, message, {})


def test_no_such_method(server: list[dict[str, Any]], address: str) -> None:
    with Connection(address, PATIENCE) as connection, pytest.raises(Unanswered):
        connection.call("/some.Service/Other", b"", {})


def test_nobody_listens(address: str) -> None:
    with pytest.raises(Unanswered):
        Connection(address, PATIENCE)


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 1) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(data: bytes) -> bytes:
    return struct.pack(">BI", 0, len(data)) + data


@pytest.fixture
def says(address: str) -> Iterator[Callable[[bytes], None]]:
    """A server that says what it is given to whoever comes, and hangs up."""
    threads: list[threading.Thread] = []
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()

    def begin(data: bytes) -> None:
        def serve() -> None:
            came, _ = listening.accept()
            with came, suppress(ConnectionError):
                came.sendall(data)
                came.shutdown(socket.SHUT_WR)
                while came.recv(65536):
                    pass

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()

    yield begin
    listening.close()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def answer(address: str) -> bytes:
    with Connection(address, PATIENCE) as connection:
        return connection.call(METHOD, b"m", {})


def test_all_that_may_come_in_between(says: Callable[[bytes], None], address: str) -> None:
    first, rest = message(b"answer")[:3], message(b"answer")[3:]
    says(
        frame(4, b"\0\5\0\0\x40\0", stream=0)
        + frame(6, b"12345678", stream=0)
        + frame(8, b"\0\0\1\0", stream=0)
        + frame(1, b"\x88", flags=4)
        + frame(0, b"of another", stream=7)
        + frame(0, b"\2" + first + b"\0\0", flags=8)
        + frame(0, rest)
        + frame(1, b"\x40", flags=5)
    )
    assert answer(address) == b"answer"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frame(1, b"\x88", flags=5),
        frame(3, b"\0\0\0\1"),
        frame(7, bytes(8), stream=0),
        frame(0, message(b"half")[:-1], flags=1),
        frame(0, message(b"one") + message(b"two"), flags=1),
        frame(0, b"\1" + message(b"packed")[1:], flags=1),
        frame(0, message(b"never ended")),
        frame(0, b"\xff", flags=9),
        frame(0, b"", flags=9),
        b"\xff\xff\xff\0\0\0\0\0\1",
    ],
)
def test_answers_that_are_none(says: Callable[[bytes], None], address: str, data: bytes) -> None:
    says(data)
    with pytest.raises(Unanswered):
        answer(address)


def test_garbage(tmp_path: Path) -> None:
    """Whatever comes: bytes or Unanswered."""

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=20), st.integers(0, 15))))
    def comes(frames: list[tuple[int, bytes, int]]) -> None:
        ours, theirs = socket.socketpair()
        connection = Connection.__new__(Connection)
        connection._socket, connection._stream, connection._seconds = ours, -1, PATIENCE
        theirs.sendall(b"".join(frame(*parts) for parts in frames))
        theirs.shutdown(socket.SHUT_WR)
        try:
            assert isinstance(connection.call(METHOD, b"", {}), bytes)
        except Unanswered:
            pass
        finally:
            ours.close()
            theirs.close()

    comes()


def test_the_library_is_not_loaded(server: list[dict[str, Any]], address: str) -> None:
    """That is what it is for."""
    code = (
        "import sys\n"
        "from shim.snapshot import image\n"
        "from shim.snapshot.unary import Connection\n"
        f"with Connection({address!r}, 30.0) as one: one.call({METHOD!r}, b'x', {{}})\n"
        "sys.exit('grpc' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(server) == 1
