from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest

from shim import errors
from shim.proto.known import Empty, Timestamp
from shim.proto.ttrpc_pb import KeyValue, Response, Status
from shim.proto.wire import Message, WireError
from shim.ttrpc.client import Client
from shim.ttrpc.frames import HEADER, MAX_BODY, RESPONSE, FrameTooBig, pack
from shim.ttrpc.server import Call, Deferred, Method

SERVICE = "test.Service"
PATIENCE = 30.0


def echo(request: Timestamp, call: Call) -> Timestamp:
    return request


ECHO = {"Echo": Method(Timestamp, echo)}


def ask(client: Client, method: str = "Echo", seconds: int = 7) -> int:
    request = Timestamp(seconds=seconds)
    return client.call(SERVICE, method, request, Timestamp, timeout=PATIENCE).seconds


def test_a_call(bench: Any) -> None:
    bench.serve(ECHO)
    with Client(f"unix://{bench.path}") as client:
        assert [ask(client, seconds=number) for number in range(5)] == list(range(5))


@pytest.mark.parametrize(
    ("code", "leaf"),
    [
        (1, errors.Cancelled),
        (2, errors.Unknown),
        (3, errors.InvalidArgument),
        (4, errors.DeadlineExceeded),
        (5, errors.NotFound),
        (6, errors.AlreadyExists),
        (7, errors.Denied),
        (8, errors.StoreFull),
        (9, errors.FailedPrecondition),
        (12, errors.Unimplemented),
        (14, errors.Unavailable),
    ],
)
def test_codes_become_our_errors(bench: Any, code: int, leaf: type[errors.ThawError]) -> None:
    def fail(request: Empty, call: Call) -> Empty:
        error = errors.ThawError("why")
        error.code = code
        raise error

    bench.serve({"Fail": Method(Empty, fail)})
    with Client(bench.path) as client, pytest.raises(errors.ThawError) as caught:
        client.call(SERVICE, "Fail", Empty(), Empty)
    assert type(caught.value) is leaf
    assert str(caught.value) == "why"


def test_a_code_without_a_leaf_is_named(bench: Any) -> None:
    def fail(request: Empty, call: Call) -> Empty:
        error = errors.ThawError("why")
        error.code = 10
        raise error

    bench.serve({"Fail": Method(Empty, fail)})
    with (
        Client(bench.path) as client,
        pytest.raises(errors.Unknown, match=r"why \(status code 10\)"),
    ):
        client.call(SERVICE, "Fail", Empty(), Empty)


def test_many_threads_over_one_connection_and_a_held_wait(bench: Any) -> None:
    held = Deferred()
    bench.serve(ECHO | {"Wait": Method(Timestamp, lambda request, call: held)})
    with Client(bench.path) as client, ThreadPoolExecutor(40) as pool:
        wait = pool.submit(ask, client, "Wait")
        assert list(pool.map(lambda n: ask(client, seconds=n), range(200))) == list(range(200))
        assert not wait.done()
        held.resolve(Timestamp(seconds=1))
        assert wait.result(PATIENCE) == 1


def test_a_timeout_leaves_the_connection_usable(bench: Any) -> None:
    held = Deferred()
    bench.serve(ECHO | {"Wait": Method(Empty, lambda request, call: held)})
    with Client(bench.path) as client:
        with pytest.raises(errors.DeadlineExceeded, match="no answer from"):
            client.call(SERVICE, "Wait", Empty(), Empty, timeout=0.01)
        held.resolve(Empty())  # comes late and is dropped
        assert ask(client) == 7
        assert client._answers == {}


def test_the_server_is_told_of_the_timeout(bench: Any) -> None:
    seen: list[float | None] = []

    def look(request: Empty, call: Call) -> Empty:
        seen.append(call.remaining())
        return Empty()

    bench.serve({"Look": Method(Empty, look)})
    with Client(bench.path) as client:
        client.call(SERVICE, "Look", Empty(), Empty, timeout=60)
        client.call(SERVICE, "Look", Empty(), Empty)
    assert seen[0] is not None
    assert 0 < seen[0] <= 60
    assert seen[1] is None


def test_a_request_too_big_is_not_sent(bench: Any) -> None:
    bench.serve(ECHO)
    with Client(bench.path) as client:
        with pytest.raises(FrameTooBig):
            client.call(SERVICE, "Echo", KeyValue(value="x" * MAX_BODY), Empty)
        assert ask(client) == 7


class FakeServer:
    """Accepts one client and does one thing to it."""

    def __init__(self, path: Path, act: Callable[[socket.socket], None]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._act = act
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        sock, _ = self._listener.accept()
        with sock:
            sock.settimeout(PATIENCE)
            self._act(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE)
        self._listener.close()


def receive(sock: socket.socket) -> None:
    sock.recv(1 << 16)


def answer(body: bytes, stream: int = 1) -> Callable[[socket.socket], None]:
    def act(sock: socket.socket) -> None:
        sock.recv(1 << 16)
        sock.sendall(pack(stream, RESPONSE, body))
        sock.recv(1)  # until the client closes

    return act


def test_a_broken_connection_is_unavailable(tmp_path: Path) -> None:
    with (
        FakeServer(tmp_path / "s", receive),
        Client(str(tmp_path / "s")) as client,
    ):
        with pytest.raises(errors.Unavailable, match="closed the connection"):
            client.call(SERVICE, "Echo", Empty(), Empty)
        with pytest.raises(errors.Unavailable, match="closed the connection"):
            client.call(SERVICE, "Echo", Empty(), Empty)


def test_all_who_wait_hear_of_a_broken_connection(tmp_path: Path) -> None:
    go = threading.Event()

    def act(sock: socket.socket) -> None:
        assert go.wait(PATIENCE)

    def call(client: Client) -> str:
        with pytest.raises(errors.Unavailable) as caught:
            client.call(SERVICE, "Echo", Empty(), Empty)
        return str(caught.value)

    with (
        FakeServer(tmp_path / "s", act),
        Client(str(tmp_path / "s")) as client,
        ThreadPoolExecutor(5) as pool,
    ):
        calls = [pool.submit(call, client) for _ in range(5)]
        while len(client._answers) < 5:
            pass
        go.set()
        assert all("s" in done.result(PATIENCE) for done in calls)


def test_closing_wakes_those_who_wait(bench: Any) -> None:
    asked = threading.Event()

    def wait(request: Timestamp, call: Call) -> Deferred:
        asked.set()
        return Deferred()

    bench.serve({"Wait": Method(Timestamp, wait)})
    client = Client(bench.path)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, client, "Wait")
        assert asked.wait(PATIENCE)
        client.close()
        with pytest.raises(errors.Unavailable, match="has been closed"):
            waiting.result(PATIENCE)
    with pytest.raises(errors.Unavailable, match="has been closed"):
        ask(client)


@pytest.mark.parametrize("body", [b"\xff", Response(payload=b"\xff").encode()])
def test_an_answer_that_cannot_be_read_is_no_fault_of_the_caller(
    tmp_path: Path, body: bytes
) -> None:
    with FakeServer(tmp_path / "s", answer(body)), Client(str(tmp_path / "s")) as client:
        with pytest.raises(errors.Unknown, match="cannot be read") as caught:
            client.call(SERVICE, "Echo", Empty(), Empty, timeout=PATIENCE)
        assert not isinstance(caught.value, WireError)


def test_status_zero_is_success(tmp_path: Path) -> None:
    body = Response(status=Status(), payload=Timestamp(seconds=3).encode()).encode()
    with FakeServer(tmp_path / "s", answer(body)), Client(str(tmp_path / "s")) as client:
        assert client.call(SERVICE, "Echo", Empty(), Timestamp).seconds == 3


def test_an_answer_too_big(tmp_path: Path) -> None:
    def act(sock: socket.socket) -> None:
        sock.recv(1 << 16)
        sock.sendall(HEADER.pack(MAX_BODY + 1, 1, RESPONSE, 0) + bytes(MAX_BODY + 1))
        sock.recv(1)

    with (
        FakeServer(tmp_path / "s", act),
        Client(str(tmp_path / "s")) as client,
        pytest.raises(FrameTooBig),
    ):
        client.call(SERVICE, "Echo", Empty(), Empty, timeout=PATIENCE)


def test_a_server_that_does_not_read_ends_the_connection(tmp_path: Path) -> None:
    done = threading.Event()

    def wait(sock: socket.socket) -> None:
        done.wait(PATIENCE)

    with (
        FakeServer(tmp_path / "s", wait),
        Client(str(tmp_path / "s")) as client,
    ):
        big: Message = KeyValue(value="x" * (MAX_BODY - 100))
        with pytest.raises(errors.DeadlineExceeded, match="takes no more requests"):
            client.call(SERVICE, "Echo", big, Empty, timeout=0.05)
        with pytest.raises(errors.Unavailable, match="takes no more requests"):
            client.call(SERVICE, "Echo", Empty(), Empty)
        done.set()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match=r"cannot connect to .*/none: No such file"):
        Client(str(tmp_path / "none"))
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead"))
    dead.close()
    with pytest.raises(errors.Unavailable, match="Connection refused"):
        Client(str(tmp_path / "dead"))


@pytest.mark.parametrize("prefix", ["@", "\0"])
def test_abstract_addresses(bench: Any, prefix: str) -> None:
    name = f"thaw-client-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    listener.listen()
    bench.serve(ECHO, listener)
    with Client(prefix + name) as client:
        assert ask(client) == 7


def test_a_path_longer_than_an_address(bench: Any, tmp_path: Path) -> None:
    bench.serve(ECHO)
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    os.rename(bench.path, folder / "s")
    with Client(str(folder / "s")) as client:
        assert ask(client) == 7


def test_a_name_longer_than_an_address(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="name too long for a socket"):
        Client(str(tmp_path / ("s" * 120)))
