from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from shim.proto.known import Empty
from shim.proto.ttrpc_pb import KeyValue
from shim.ttrpc.frames import MAX_BODY
from shim.ttrpc.server import Call, Deferred, Method

PATIENCE = 30.0
NOTHING = {"Nothing": Method(Empty, lambda request, call: Empty(), inline=True)}

CONNECT_AS_NOBODY = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(30)
sock.connect("\\0" + sys.argv[1])
try:
    sys.exit(0 if sock.recv(1) == b"" else 1)
except ConnectionResetError:
    sys.exit(0)
"""


class Failing(socket.socket):
    """A listener whose next accepts fail as listed."""

    failures: list[int]

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            code = self.failures.pop(0)
            raise OSError(code, os.strerror(code))
        return super().accept()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.EINTR])
def test_accepting_goes_on_after_a_failure(bench: Any, code: int) -> None:
    listener = Failing(socket.AF_UNIX)
    listener.failures = [code]
    listener.bind(bench.path)
    listener.listen()
    bench.serve(NOTHING, listener)
    peer = bench.peer()
    peer.ask(1, "Nothing")
    assert peer.answer()[0] == 1
    assert listener.failures == []


def test_a_server_closed_while_it_has_no_descriptors_stays_closed(bench: Any) -> None:
    listener = Failing(socket.AF_UNIX)
    listener.failures = [errno.EMFILE]
    listener.bind(bench.path)
    listener.listen()
    server = bench.serve(NOTHING, listener)
    bench.peer()
    bench.until(lambda: not listener.failures)
    bench.do(server.close)
    bench.do(server._resume)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_other_users_are_turned_away(bench: Any) -> None:
    name = f"thaw-test-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    listener.listen()
    bench.serve(NOTHING, listener)
    subprocess.run([sys.executable, "-c", CONNECT_AS_NOBODY, name], check=True, timeout=PATIENCE)
    bench.path = f"\0{name}"
    peer = bench.peer()
    peer.ask(1, "Nothing")
    assert peer.answer()[0] == 1


def test_closing_ends_every_connection_and_wait(bench: Any) -> None:
    abandoned = threading.Event()
    held = Deferred(on_abandon=abandoned.set)
    server = bench.serve({"Wait": Method(Empty, lambda request, call: held, True)})
    peer = bench.peer()
    peer.ask(1, "Wait")
    bench.until(lambda: any(session._held for session in server._sessions))
    bench.do(server.close)
    bench.do(server.close)
    assert abandoned.is_set()
    with pytest.raises(EOFError):
        peer.answer()
    with pytest.raises(ConnectionRefusedError):
        bench.peer()


@pytest.mark.parametrize("inline", [True, False])
def test_the_last_answer_is_out_before_the_drain_is_done(bench: Any, inline: bool) -> None:
    drained = threading.Event()

    def shutdown(request: Empty, call: Call) -> KeyValue:
        server.drain(drained.set, timeout=PATIENCE)
        return KeyValue(value="x" * (MAX_BODY - 100))

    held = Deferred()
    server = bench.serve(
        {
            "Wait": Method(Empty, lambda request, call: held, True),
            "Shutdown": Method(Empty, shutdown, inline),
        }
    )
    peer = bench.peer()
    peer.ask(1, "Wait")  # is not waited for
    peer.ask(3, "Shutdown")
    bench.until(lambda: server._drained is not None)
    bench.do(lambda: None)
    assert not drained.is_set()  # for the answer does not fit the socket
    stream, response = peer.answer()
    assert (stream, response.status) == (3, None)
    assert drained.wait(PATIENCE)
    with pytest.raises(ConnectionRefusedError):
        bench.peer()


def test_draining_an_idle_server_is_done_at_once(bench: Any) -> None:
    drained = threading.Event()
    server = bench.serve(NOTHING)
    bench.peer()
    server.drain(drained.set, timeout=PATIENCE)
    assert drained.wait(PATIENCE)


def test_a_reader_that_never_reads_cannot_stop_a_drain(bench: Any) -> None:
    drained = threading.Event()
    big = KeyValue(value="x" * (MAX_BODY - 100))
    server = bench.serve({"Big": Method(Empty, lambda request, call: big, True)})
    bench.peer().ask(1, "Big")
    bench.until(lambda: any(not session.quiet for session in server._sessions))
    server.drain(drained.set, timeout=0.01)
    assert drained.wait(PATIENCE)


def test_a_drain_is_over_when_the_peer_leaves(bench: Any) -> None:
    drained = threading.Event()
    big = KeyValue(value="x" * (MAX_BODY - 100))
    server = bench.serve({"Big": Method(Empty, lambda request, call: big, True)})
    peer = bench.peer()
    peer.ask(1, "Big")
    bench.until(lambda: any(not session.quiet for session in server._sessions))
    server.drain(drained.set, timeout=PATIENCE)
    peer.close()
    assert drained.wait(PATIENCE)
