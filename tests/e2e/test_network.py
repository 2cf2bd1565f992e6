"""A restored worker is on its new pod's network: sockets have moved, outside peers are let go."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple

import pytest
from bed.lane import Lane
from bed.pod import Container, Pod
from outside import Greeter, WebServer
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
SECONDS = 60  # for an answer: who is asked may get no processor for long

# Has a connection to a server outside, one to a web server that it keeps as a pool does, and two
# wholly inside; tells of them on every listener, and by HTTP.
WORKER = """\
import http.client, json, select, socket, struct, time
def gateway():
    rows = [line.split() for line in open("/proc/net/route")][1:]
    [found] = [row[2] for row in rows if row[1] == "00000000"]
    return socket.inet_ntoa(struct.pack("<L", int(found, 16)))
def dial():
    try:
        made = socket.create_connection((gateway(), %d), 60)
        said["server"] = made.recv(64).decode()
        return made
    except OSError as error:
        said["server"] = type(error).__name__
        return None
def fetched():
    try:
        # As pools do: what can be read before anything was asked is the end of the connection.
        if pool.sock and select.select([pool.sock], [], [], 0)[0]:
            pool.close()
        pool.request("GET", "/")
        return pool.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as error:
        pool.close()
        return type(error).__name__
def pair(listener):
    made = socket.create_connection(listener.getsockname())
    return made, listener.accept()[0]
def works(one, other):
    one.sendall(b"ping")
    other.sendall(other.recv(64) + b" pong")
    return one.recv(64).decode()
said = {"ended": 0}
outside = dial()
pool = http.client.HTTPConnection(gateway(), %d, 60)
fetched()
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
        elif asked := made.recv(1024):
            names = [s.getsockname()[0] for s in listeners]
            tell = {**said, "names": names, "clients": len(clients),
                "loopback": works(*loopback), "inside": works(*inside), "fetched": fetched()}
            text = json.dumps(tell).encode() + b"\\n"
            head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %%d\\r\\n\\r\\n" %% len(text)
            made.sendall(head + text if asked.startswith(b"GET") else text)
        else:
            clients.remove(made)
"""
ASK = """\
import socket
with socket.create_connection(("127.0.0.1", 8002), 60) as made:
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


class Outside(NamedTuple):
    """The servers that the worker is connected to."""

    greeter: Greeter
    web: WebServer

    @property
    def worker(self) -> str:
        return WORKER % (self.greeter.port, self.web.port)

    def close(self) -> None:
        self.greeter.close()
        self.web.close()


@contextmanager
def dumped(lane: Lane) -> Iterator[tuple[Outside, str, str]]:
    """The servers, the name of a snapshot of a worker that is connected to them, its address."""
    with closing(Greeter()) as greeter, closing(WebServer()) as web:
        outside = Outside(greeter, web)
        with lane.pod("old") as pod:
            worker = host_python(pod, outside.worker).start()
            worker.wait_for_log("booted")
            kept = HTTPConnection(pod.ip, WILDCARD, timeout=SECONDS)
            with socket.create_connection((pod.ip, WILDCARD), SECONDS) as client, closing(kept):
                assert told(client)["server"] == "hello 1"
                assert got(kept)["fetched"] == "connection 1"
                by = kept.sock
                checkpoint(lane, worker, "connected")
                assert told(client)["server"] == "hello 1", "the dump has not hurt it"
                assert got(kept)["fetched"] == "connection 1"
                assert kept.sock is by
                old = pod.ip
                pod.remove()
                assert ends(kept.sock), "a client does not wait for an answer that never comes"
        yield outside, "connected", old


def told(client: socket.socket) -> dict[str, Any]:
    client.sendall(b"tell")
    with client.makefile() as lines:
        answer: dict[str, Any] = json.loads(lines.readline())
        return answer


def got(client: HTTPConnection) -> dict[str, Any]:
    client.request("GET", "/")
    answer: dict[str, Any] = json.loads(client.getresponse().read())
    return answer


def ends(client: socket.socket) -> bool:
    """Whether the peer ends the connection, rather than leave us waiting."""
    try:
        return client.recv(64) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def asked(pod: Pod, port: int) -> dict[str, Any]:
    with socket.create_connection((pod.ip, port), SECONDS) as client:
        return told(client)


def restored(lane: Lane, pod: Pod, outside: Outside, closed: int = 4) -> Container:
    container = host_python(pod, outside.worker).start()
    line = outcome(lane, container)
    assert line.message == "restored", line
    # Two listeners, two ends of a connection and a datagram socket; the ends on loopback are kept
    # where they are; those to two servers, and from two clients, are closed.
    assert line.fields["sockets"] == f"5 moved, 4 kept, {closed} closed"
    assert not booted_cold(container)
    return container


def test_the_worker_is_on_its_new_pods_network(lane: Lane) -> None:
    with (
        dumped(lane) as (outside, name, old),
        lane.pod("new", annotations={SNAPSHOT: name, **FAIL}) as pod,
    ):
        assert pod.ip != old
        container = restored(lane, pod, outside)
        wait_until(lambda: len(outside.greeter.peers) > 1, "another connection")
        assert outside.greeter.peers == [old, pod.ip]
        for port in (OUTRIGHT, WILDCARD, OWN):
            answer = asked(pod, port)
            assert answer == {
                "server": "hello 2",
                "ended": 1,
                "names": [pod.ip, "0.0.0.0", "127.0.0.1", pod.ip],
                "clients": 1,
                "loopback": "ping pong",
                "inside": "ping pong",
                "fetched": "connection 2",
            }
        with closing(HTTPConnection(pod.ip, OUTRIGHT, timeout=SECONDS)) as client:
            assert got(client)["server"] == "hello 2"
        assert json.loads(python(container, ASK))["server"] == "hello 2"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(SECONDS)
            made.connect((pod.ip, DATAGRAMS))
            made.send(b"there")
            assert made.recv(64) == b"there back"
        checkpoint(lane, container, "again")
        with lane.pod("third", annotations={SNAPSHOT: "again", **FAIL}) as third:
            restored(lane, third, outside, closed=2)
            answer = asked(third, OUTRIGHT)
            assert (answer["ended"], answer["fetched"]) == (2, "connection 3")


def test_servers_that_are_gone(lane: Lane) -> None:
    with dumped(lane) as (outside, name, _):
        outside.close()
        with lane.pod("alone", annotations={SNAPSHOT: name, **FAIL}) as pod:
            restored(lane, pod, outside)
            answer = asked(pod, OUTRIGHT)
            assert (answer["server"], answer["ended"]) == ("ConnectionRefusedError", 1)
            assert answer["fetched"] == "ConnectionRefusedError"
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
