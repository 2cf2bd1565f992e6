"""Actions: what is asked of a worker, and that its time is really over when it is."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from fakes.inmates import inmate
from fakes.namespaces import Network
from fakes.settled import PATIENCE, alive, eventually
from fakes.talkers import Talk, answer, by_drops, refusal, silent, talker

from oci_hooks.hold import hold, release
from shim.conduct import Action
from shim.errors import WorkerFailed
from shim.worker import actions
from shim.worker.actions import (
    LARGEST,
    Worker,
    act,
    ask_status,
    connection,
    execute,
    own_addresses,
    request,
)


def post(port: int, path: str = "wake_up") -> Action:
    return Action("http", f"{port}/{path}")


def test_a_post(worker: Worker) -> None:
    with talker(answer(200)) as server:
        act(post(server.port, "sleep?level=1"), worker, PATIENCE)
    head = server.heard[0].decode()
    assert head.startswith("POST /sleep?level=1 HTTP/1.1\r\n")
    assert "Content-Length: 0" in head


@pytest.mark.parametrize("status", [199 + 1, 204, 299])
def test_good_statuses(worker: Worker, status: int) -> None:
    with talker(answer(status)) as server:
        act(post(server.port), worker, PATIENCE)


@pytest.mark.parametrize("status", [302, 404, 500])
def test_bad_statuses(worker: Worker, status: int) -> None:
    with (
        talker(answer(status, b"no such\x1b[31m thing\n")) as server,
        pytest.raises(WorkerFailed) as failed,
    ):
        act(post(server.port), worker, PATIENCE)
    assert failed.value.message == (
        f"http:{server.port}/wake_up: answered {status}: no such?[31m thing"
    )
    assert failed.value.hint == "it must be 200 to 299"


def test_it_is_asked_in_the_pods_network() -> None:
    """At loopback and at the pod's own address, of IPv4 and IPv6; never at the node's."""
    with Network() as network, talker(answer(500)) as ours:
        pod = network.pod(1)
        with inmate(pod.path) as process:
            worker = Worker("c", process.pid, None)  # type: ignore[arg-type]
            with pytest.raises(WorkerFailed, match="nobody listens"):
                act(post(ours.port), worker, 0.1)
            for address in ("127.0.0.1", "::1", pod.address4, pod.address6):
                listening = pod.within(partial(_listen, address))
                with talker(answer(200), listening) as server:
                    act(post(server.port), worker, PATIENCE)
                assert len(server.heard) == 1
        assert ours.heard == []


def test_it_is_asked_while_the_network_is_held() -> None:
    """At the pod's own address too: the way there is the loopback's."""
    with Network() as network:
        pod = network.pod(1)
        hold(pod.path)
        with inmate(pod.path) as process:
            worker = Worker("c", process.pid, None)  # type: ignore[arg-type]
            for address in ("127.0.0.1", pod.address4, pod.address6):
                with talker(answer(200), pod.within(partial(_listen, address))) as server:
                    act(post(server.port), worker, PATIENCE)
        release(pod.path)


def test_own_addresses() -> None:
    """Loopback first: whether it is up or not, a server may be there."""
    found = own_addresses()
    assert found[:2] == ["127.0.0.1", "::1"]
    assert len(set(found)) == len(found)
    with Network() as network:
        pod = network.pod(1)
        assert pod.within(own_addresses) == ["127.0.0.1", "::1", pod.address4, pod.address6]


def test_a_status_is_not_kept_waiting_for_the_rest() -> None:
    """A health page may be a stream of events without an end."""
    with (
        talker(endless) as server,
        connection(server.port, time.monotonic() + PATIENCE) as connected,
    ):
        assert connected is not None
        assert ask_status(connected, "/health") == 202
    assert server.heard[0].startswith(b"GET /health HTTP/1.1\r\n")


def endless(connection: socket.socket, _request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 202 Some\r\nContent-Type: text/event-stream\r\n\r\n")
    connection.recv(1)  # until we are left alone


def _listen(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family)


def test_a_server_may_come_late(worker: Worker) -> None:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))

        asked = threading.Event()

        def serve() -> None:
            time.sleep(0.1)
            place.listen()
            with talker(answer(200), place.dup()):
                asked.wait(PATIENCE)

        thread = threading.Thread(target=serve)
        thread.start()
        act(post(place.getsockname()[1]), worker, PATIENCE)
        asked.set()
        thread.join()


def test_not_yet_is_asked_again(worker: Worker) -> None:
    with talker(answer(503)) as server:

        def later(connection: socket.socket, request: bytes) -> None:
            server.talk = answer(200)
            answer(503)(connection, request)

        server.talk = later
        act(post(server.port), worker, PATIENCE)
    assert len(server.heard) == 2
    with talker(answer(503)) as server:
        said = refusal(WorkerFailed, lambda seconds: act(post(server.port), worker, seconds))
    assert "503, for " in said


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "talk",
    [silent, by_drops(OK + b"Content-Length: 1000000\r\n\r\n", b"x"), by_drops(b"", OK)],
    ids=["silent", "trickling", "trickling head"],
)
def test_late(worker: Worker, talk: Talk) -> None:
    began = time.monotonic()
    with talker(talk) as server:
        with pytest.raises(WorkerFailed, match=r"no answer within 0.2 s"):
            act(post(server.port), worker, 0.2)
        assert time.monotonic() - began < PATIENCE


def nothing(connection: socket.socket, _request: bytes) -> None:
    pass


def garbage(connection: socket.socket, _request: bytes) -> None:
    connection.sendall(b"what?\r\n\r\n")


@pytest.mark.parametrize("talk", [nothing, garbage, answer(200, b"half", length=9)])
def test_broken_off(worker: Worker, talk: object) -> None:
    with talker(talk) as server, pytest.raises(WorkerFailed, match=r"broke off.* own log"):  # type: ignore[arg-type]
        request(post(server.port), worker, PATIENCE, method="GET")


def test_its_connection_ends_first(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ending, and cannot be seen to have ended yet."""
    monkeypatch.setattr(actions, "_MOMENT", PATIENCE)
    looks = iter([False, False])
    monkeypatch.setattr(Worker, "ended", property(lambda _: next(looks, True)))
    with talker(nothing) as server, pytest.raises(WorkerFailed, match="c has ended"):
        request(post(server.port), worker, PATIENCE, method="GET")


def test_a_flood(worker: Worker) -> None:
    with (
        talker(answer(200, bytes(LARGEST + 1))) as server,
        pytest.raises(WorkerFailed, match="more than 1048576 bytes"),
    ):
        act(post(server.port), worker, PATIENCE)


def test_a_worker_that_has_ended(worker: Worker, process: subprocess.Popen[bytes]) -> None:
    process.kill()
    began = time.monotonic()
    with pytest.raises(WorkerFailed, match="c has ended"):
        act(post(1), worker, 2 * PATIENCE)
    process.wait()
    with pytest.raises(WorkerFailed, match="c has ended"):
        act(post(1), worker, 2 * PATIENCE)
    assert time.monotonic() - began < PATIENCE


def test_a_command(worker: Worker) -> None:
    act(Action("exec", "exit 0"), worker, PATIENCE)
    done = execute("echo out; echo err >&2; exit 3", worker, PATIENCE)
    assert (done.status, done.body) == (3, b"out\n")
    with pytest.raises(WorkerFailed, match="exec:echo no >&2; false: exit status 1: no"):
        act(Action("exec", "echo no >&2; false"), worker, PATIENCE)


def test_a_command_without_its_runtime(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(worker.runc), "inside", lambda *_: ["/no/such", "x"])
    with pytest.raises(WorkerFailed, match="cannot run /no/such"):
        execute("true", worker, PATIENCE)


@pytest.mark.parametrize(
    "command",
    [
        "echo $$ >{pids}; sleep 1000",
        "trap '' TERM INT HUP; echo $$ >{pids}; while :; do sleep 0.01; done",
        "sleep 1000 & echo $! >{pids}; wait",
        # The parent has ended, the session goes on.
        "(sleep 1000 & echo $! >{pids}); sleep 1000",
        # Descendants with sessions of their own.
        "setsid sh -c 'echo $$ >{pids}; exec sleep 1000' & wait",
    ],
)
def test_a_command_that_hangs_is_killed(worker: Worker, tmp_path: Path, command: str) -> None:
    """With all that it has started."""
    began = time.monotonic()
    pid = _hangs(command, worker, tmp_path / "pids", " (an annot")
    assert time.monotonic() - began < PATIENCE
    eventually(lambda: not alive(pid))


def _hangs(command: str, worker: Worker, pids: Path, more: str = "") -> int:
    """The pid that a command has written, which has been killed; it gets the time to write it."""
    for seconds in (0.3, 1, 3, 9):
        said = re.escape(f"not done after {seconds} s, killed{more}")
        with pytest.raises(WorkerFailed, match=said):
            execute(command.format(pids=pids), worker, seconds)
        if pids.exists() and pids.read_text():
            break
    return int(pids.read_text())


def test_what_outlives_the_command_is_of_its_session(worker: Worker, tmp_path: Path) -> None:
    """As long as it holds the output open, the runtime waits for it; and so it is killed."""
    pid = _hangs("sleep 1000 & echo $! >{pids}; echo left", worker, tmp_path / "pid")
    eventually(lambda: not alive(pid))


def test_a_daemon_stays(worker: Worker, tmp_path: Path) -> None:
    done = execute(
        f"setsid sleep 1000 >&- 2>&- & echo $! >{tmp_path}/pid; echo left", worker, PATIENCE
    )
    assert (done.status, done.body) == (0, b"left\n")
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_a_command_that_says_too_much(worker: Worker) -> None:
    with pytest.raises(WorkerFailed, match="says more than"):
        execute("cat /dev/zero", worker, PATIENCE)
