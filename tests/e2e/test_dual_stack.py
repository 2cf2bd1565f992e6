"""A restored worker of a pod with IPv4 and IPv6, and with sockets that have no address at all."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import pytest
from bed.lane import Lane
from bed.network import has_ipv6
from bed.pod import Pod
from outside import Greeter
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

pytestmark = [
    pytest.mark.one_lane,
    pytest.mark.skipif(not has_ipv6(), reason="this machine's kernel gives interfaces no IPv6"),
]

OUTRIGHT, WILDCARD, LOOPBACK, BOTH, MAPPED, DATAGRAMS = range(8100, 8106)

# Listens on addresses of every kind, has a connection of each kind, and tells of all of them.
WORKER = """\
import json, os, select, socket, struct
SIX, UNIX, STREAM, DATAGRAM = socket.AF_INET6, socket.AF_UNIX, socket.SOCK_STREAM, socket.SOCK_DGRAM
def listening(address, port, both=False):
    return socket.create_server((address, port), family=SIX, dualstack_ipv6=both)
def pair(listener):
    made = socket.socket(listener.family)
    made.connect(listener.getsockname())
    return made, listener.accept()[0]
def bound(kind, name):
    made = socket.socket(UNIX, kind)
    made.bind(name)
    return made
def dial():
    made = socket.create_connection(("%s", %d), 60)
    said["server"] = made.recv(64).decode()
    return made
def works(one, other):
    one.sendall(b"ping")
    other.sendall(other.recv(64) + b" pong")
    return one.recv(64).decode()
def reached(kind, listener):
    # By its name, as others do.
    with socket.socket(UNIX, kind) as client:
        client.connect(listener.getsockname())
        client.send(b"by name")
        if kind == DATAGRAM:
            return listener.recv(64).decode()
        with listener.accept()[0] as accepted:
            return accepted.recv(64).decode()
def addresses():
    # RTM_GETADDR: what is answered comes from the namespace that the socket is in.
    link.send(struct.pack("=IHHIIBBBBI", 24, 22, 0x301, 1, 0, SIX, 0, 0, 0, 0))
    found, more = [], True
    while more:
        data = link.recv(1 << 16)
        while data:
            size, kind = struct.unpack_from("=IH", data)
            more = kind == 20
            if more:  # IFA_ADDRESS is the first attribute
                found.append(socket.inet_ntop(SIX, data[28:44]))
            data = data[size + 3 & ~3:]
    return found
def tell():
    return {**said,
        "names": [s.getsockname()[0] for s in listeners],
        "loopback": works(*loopback), "inside": works(*inside), "mapped": works(*mapped),
        "unix": [works(*pair) for pair in unix_pairs],
        "by name": [*(reached(STREAM, s) for s in streams), *(reached(DATAGRAM, s) for s in grams)],
        "path": os.path.exists("/run/stream.sock"),
        "addresses": addresses(), "port of netlink": link.getsockname()[0]}
said = {"ended": 0}
outside = dial()
own = outside.getsockname()[0]
own4 = [line.split()[0] for line in open("/etc/hosts") if "." in line][1]
listeners = [listening(own, 8100), listening("::", 8101), listening("::1", 8102),
    listening("::", 8103, True), listening("::ffff:" + own4, 8104, True)]
datagrams = socket.socket(SIX, DATAGRAM)
datagrams.bind((own, 8105))
inside, loopback, mapped = (pair(listeners[n]) for n in (0, 2, 4))
streams = [bound(STREAM, name) for name in ("\\0stream", "/run/stream.sock")]
for made in streams:
    made.listen()
grams = [bound(DATAGRAM, name) for name in ("\\0datagram", "/run/datagram.sock")]
unix_pairs = [pair(streams[0]), pair(streams[1]), socket.socketpair(UNIX, DATAGRAM)]
link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
link.bind((0, 0))
print("booted")
while True:
    for made in select.select([*listeners, datagrams, outside], [], [])[0]:
        if made in listeners:
            with made.accept()[0] as asked:
                asked.sendall(json.dumps(tell()).encode())
        elif made is datagrams:
            text, peer = made.recvfrom(64)
            made.sendto(text + b" back", peer)
        elif made.recv(64) == b"":
            said["ended"] += 1
            outside = dial()
"""
ASK = f"""\
import socket
with socket.create_connection(("::1", {LOOPBACK}), 60) as made:
    print(made.makefile().read())
"""


class Dumped(NamedTuple):
    """A worker's snapshot, the server that it is connected to, its pod's addresses."""

    snapshot: str
    greeter: Greeter
    program: str
    old: tuple[str, str]
    told: dict[str, Any]


@pytest.fixture
def dumped(lane: Lane) -> Iterator[Dumped]:
    with closing(Greeter()) as greeter:
        program = WORKER % (lane.subnets[-1].gateway, greeter.port)
        with lane.pod("old") as pod:
            worker = host_python(pod, program).start()
            worker.wait_for_log("booted")
            told = asked(pod.ip6, OUTRIGHT)
            assert told["server"] == "hello 1"
            assert pod.ip6 in told["addresses"]
            checkpoint(lane, worker, "dual")
            old = pod.ip, pod.ip6
        yield Dumped("dual", greeter, program, old, told)


def asked(address: str, port: int) -> dict[str, Any]:
    with socket.create_connection((address, port), 60) as client:
        answer: dict[str, Any] = json.loads(client.makefile().read())
        return answer


def echoed(address: str) -> bytes:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
        made.settimeout(60)
        made.connect((address, DATAGRAMS))
        made.send(b"there")
        return made.recv(64)


def test_both_families_and_none(lane: Lane, dumped: Dumped) -> None:
    with lane.pod("new", annotations={SNAPSHOT: dumped.snapshot, **FAIL}) as pod:
        assert {pod.ip, pod.ip6}.isdisjoint(dumped.old)
        container = host_python(pod, dumped.program).start()
        line = outcome(lane, container)
        # Two listeners, two pairs and a datagram socket; the pair on loopback stays where it is.
        assert line.fields["sockets"] == "7 moved, 6 kept, 1 closed"
        assert not booted_cold(container)
        wait_until(lambda: len(dumped.greeter.peers) > 1, "another connection")
        assert dumped.greeter.peers == [dumped.old[1], pod.ip6]
        check_told(dumped, pod)
        for address, port in ((pod.ip, BOTH), (pod.ip, MAPPED), (pod.ip6, WILDCARD)):
            assert asked(address, port)["server"] == "hello 2"
        assert json.loads(python(container, ASK))["server"] == "hello 2"
        assert echoed(pod.ip6) == b"there back"


def check_told(dumped: Dumped, pod: Pod) -> None:
    """All that the worker said of its sockets before is so again, on the new pod's addresses."""
    told = asked(pod.ip6, OUTRIGHT)
    link_local = {text for text in told["addresses"] if text.startswith("fe80:")}
    assert {*told.pop("addresses")} - link_local == {"::1", pod.ip6}
    pong = "ping pong"
    assert told == {
        "server": "hello 2",
        "ended": 1,
        "names": [pod.ip6, "::", "::1", "::", f"::ffff:{pod.ip}"],
        "loopback": pong,
        "inside": pong,
        "mapped": pong,
        "unix": [pong] * 3,
        "by name": ["by name"] * 4,
        "path": True,
        "port of netlink": dumped.told["port of netlink"],
    }
