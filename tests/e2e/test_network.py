"""A restored worker is on its new pod's network: sockets have moved, outside peers are let go."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from bed.lane import Lane
from bed.pod import Container, Pod
from workers import (
    FAIL,
    SNAPSHOT,
    booted_cold,
    checkpoint,
    host_python,
    outcome,
    python,
    wait_until,
)

pytestmark = [pytest.mark.one_lane]

OUTRIGHT, WILDCARD, LOOPBACK, DATAGRAMS, OWN = range(8000, 8005)

# Has a connection to a server outside, two wholly inside, and tells of them on every listener.
WORKER = """\
import json, select, socket, struct, time
def gateway():
    rows = [line.split() for line in open("/proc/net/route")][1:]
    [found] = [row[2] for row in rows if row[1] == "00000000"]
    return socket.inet_ntoa(struct.pack("<L", int(found, 16)))
def dial():
    try:
        made = socket.create_connection((gateway(), %d), 5)
        said["server"] = made.recv(64).decode()
        return made
    except OSError as error:
        said["server"] = type(error).__name__
        return None
def pair(listener):
    made = socket.create_connection(listener.getsockname())
    return made, listener.accept()[0]
def works(one, other):
    one.sendall(b"ping")
    other.sendall(other.recv(64) + b" pong")
    return one.recv(64).decode()
said = {"ended": 0}
outside = dial()
own = outside.getsockname()[0]
listeners = [socket.create_server(at) for at in
    ((own, 8000), ("0.0.0.0", 8001), ("127.0.0.1", 8002), (own, 8004))]
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind((own, 8003))
loopback, inside = pair(listeners[2]), pair(listeners[3])
clients = []
print("booted")
while True:
    watched = [*listeners, *clients, datagrams, *([outside] if outside else [])]
    for made in select.select(watched, [], [])[0]:
        if made in listeners:
            clients.append(made.accept()[0])
        elif made is datagrams:
            text, peer = made.recvfrom(64)
            made.sendto(text + b" back", peer)
        elif made is outside:
            if made.recv(64) == b"":
                said["ended"] += 1
                outside = dial()
        elif made.recv(64):
            names = [s.getsockname()[0] for s in listeners]
            tell = {**said, "names": names, "clients": len(clients),
                "loopback": works(*loopback), "inside": works(*inside)}
            made.sendall(json.dumps(tell).encode() + b"\\n")
        else:
            clients.remove(made)
"""
ASK = """\
import socket
with socket.create_connection(("127.0.0.1", 8002), 5) as made:
    made.sendall(b"tell")
    print(made.makefile().readline())
"""
BOUND_ELSEWHERE = """\
import signal, socket
made = socket.socket()
made.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND: no interface needs to have it
made.bind(("10.254.254.1", 8000))
made.listen()
print("booted")
while True:
    signal.pause()
"""


class Server:
    """Greets who connects, from outside of all pods, and keeps the connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("0.0.0.0", 0))
        self.port = int(self._listener.getsockname()[1])
        self.peers: list[str] = []
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            self.peers.append(peer[0])
            self._connections.append(connection)
            connection.sendall(f"hello {len(self.peers)}".encode())

    def close(self) -> None:
        """End all that it has, with its peers; it may be closed already."""
        if self._thread.is_alive():
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        for made in (self._listener, *self._connections):
            made.close()


@contextmanager
def dumped(lane: Lane) -> Iterator[tuple[Server, str, str]]:
    """A server, the name of a snapshot of a worker that is connected to it, its pod's address."""
    server = Server()
    try:
        with lane.pod("old") as pod:
            worker = host_python(pod, WORKER % server.port).start()
            worker.wait_for_log("booted")
            with socket.create_connection((pod.ip, WILDCARD), 5) as client:
                assert told(client)["server"] == "hello 1"
                checkpoint(lane, worker, "connected")
                assert told(client)["server"] == "hello 1", "the dump has not hurt it"
            old = pod.ip
        yield server, "connected", old
    finally:
        server.close()


def told(client: socket.socket) -> dict[str, Any]:
    client.sendall(b"tell")
    with client.makefile() as lines:
        answer: dict[str, Any] = json.loads(lines.readline())
        return answer


def asked(pod: Pod, port: int) -> dict[str, Any]:
    with socket.create_connection((pod.ip, port), 5) as client:
        return told(client)


def restored(lane: Lane, pod: Pod, server: Server, closed: int = 2) -> Container:
    container = host_python(pod, WORKER % server.port).start()
    line = outcome(lane, container)
    assert line.message == "restored", line
    # Two listeners, two ends of a connection and a datagram socket; the ends on loopback are kept
    # where they are; the server's, and a client's, are closed.
    assert line.fields["sockets"] == f"5 moved, 4 kept, {closed} closed"
    assert not booted_cold(container)
    return container


def test_the_worker_is_on_its_new_pods_network(lane: Lane) -> None:
    with (
        dumped(lane) as (server, name, old),
        lane.pod("new", annotations={SNAPSHOT: name, **FAIL}) as pod,
    ):
        assert pod.ip != old
        container = restored(lane, pod, server)
        wait_until(lambda: len(server.peers) > 1, "another connection")
        assert server.peers == [old, pod.ip]
        for port in (OUTRIGHT, WILDCARD, OWN):
            answer = asked(pod, port)
            assert answer == {
                "server": "hello 2",
                "ended": 1,
                "names": [pod.ip, "0.0.0.0", "127.0.0.1", pod.ip],
                "clients": 1,
                "loopback": "ping pong",
                "inside": "ping pong",
            }
        assert json.loads(python(container, ASK))["server"] == "hello 2"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(5)
            made.connect((pod.ip, DATAGRAMS))
            made.send(b"there")
            assert made.recv(64) == b"there back"
        checkpoint(lane, container, "again")
        with lane.pod("third", annotations={SNAPSHOT: "again", **FAIL}) as third:
            restored(lane, third, server, closed=1)
            assert asked(third, OUTRIGHT)["ended"] == 2


def test_a_server_that_is_gone(lane: Lane) -> None:
    with dumped(lane) as (server, name, _):
        server.close()
        with lane.pod("alone", annotations={SNAPSHOT: name, **FAIL}) as pod:
            restored(lane, pod, server)
            answer = asked(pod, OUTRIGHT)
            assert (answer["server"], answer["ended"]) == ("ConnectionRefusedError", 1)
            assert (answer["loopback"], answer["inside"]) == ("ping pong", "ping pong")


def test_bound_to_an_address_that_no_pod_has(lane: Lane) -> None:
    with lane.pod("elsewhere") as pod:
        worker = host_python(pod, BOUND_ELSEWHERE).start()
        worker.wait_for_log("booted")
        checkpoint(lane, worker, "elsewhere")
    with lane.pod("cold", annotations={SNAPSHOT: "elsewhere"}) as pod:
        container = host_python(pod, BOUND_ELSEWHERE).start()
        container.wait_for_log("booted")
        line = outcome(lane, container)
        assert line.message == "booting cold"
        assert "a socket is bound to 10.254.254.1:8000" in line.fields["error"]
