"""A restored worker is not seen before its canary has passed: its pod's network is held till then.

Its neighbours know of it by then, as the hook has announced its addresses.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from bed.images import HOST_IMAGE
from bed.lane import Lane
from bed.pod import Container, Mount, Pod
from frames import Bridge
from outside import Greeter
from serving import annotated
from workers import USR, booted_cold, checkpoint, outcome, script, wait_until

pytestmark = [pytest.mark.one_lane]

PORT = 8200
# Listens, and keeps a connection to the outside by each family that the pod has.
WORKER = """\
import select, socket
def dial(gateway):
    made = socket.create_connection((gateway, %d))
    made.recv(64)
    return made
six = socket.has_dualstack_ipv6()
place, family = ("::", socket.AF_INET6) if six else ("0.0.0.0", socket.AF_INET)
listener = socket.create_server((place, 8200), family=family, dualstack_ipv6=six)
gateways = %r
outside = [dial(gateway) for gateway in gateways]
print("booted")
while True:
    for made in select.select([listener, *outside], [], [])[0]:
        if made is listener:
            with made.accept()[0] as client:
                client.sendall(b"served")
        elif made.recv(64) == b"":
            gateway = gateways[outside.index(made)]
            outside[outside.index(made)] = dial(gateway)
"""
# Waits until the worker is on its way out (state 2 of /proc/net/tcp is SYN_SENT), says so, and
# waits until it is let go on.
CANARY = """\
opened() { [ -e /gate/open ]; }
leaving() { grep -q '^ *[0-9]*: [^ ]* [^ ]* 02 ' /proc/net/tcp /proc/net/tcp6; }
until leaving || opened; do sleep 0.02; done
touch /gate/asked
until opened; do sleep 0.02; done
"""


def worker(lane: Lane, pod: Pod, port: int, gate: Path) -> Container:
    """Create one whose canary waits at a gate."""
    program = WORKER % (port, [subnet.gateway for subnet in lane.subnets])
    mounts = [USR, Mount(gate, "/gate", readonly=False)]
    return pod.container("app", HOST_IMAGE, script(program), mounts=mounts)


@contextmanager
def knocking(address: str) -> Iterator[socket.socket]:
    """A connection to the worker that is asked for; it is writable when it is there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        client.setblocking(False)
        client.connect_ex((address, PORT))
        yield client


def test_nothing_in_or_out_until_the_canary_has_passed(lane: Lane, tmp_path: Path) -> None:
    asked, opened = tmp_path / "asked", tmp_path / "open"
    notes = annotated(
        snapshot="held", on_failure="fail", canary=f"exec:{CANARY}", canary_timeout="60"
    )
    with closing(Greeter()) as greeter, ExitStack() as stack:
        with lane.pod("old") as pod:
            cold = worker(lane, pod, greeter.port, tmp_path).start()
            cold.wait_for_log("booted")
            checkpoint(lane, cold, "held")
        before = list(greeter.peers)
        pod = stack.enter_context(lane.pod("new", annotations=notes))
        own = [address for address in (pod.ip, pod.ip6) if address]
        container = worker(lane, pod, greeter.port, tmp_path)
        bridge = stack.enter_context(Bridge(lane.bridge))
        start = container.starting()
        stack.callback(start.exception)  # waits for its end
        stack.callback(opened.touch)
        wait_until(asked.exists, "the canary")
        clients = [stack.enter_context(knocking(address)) for address in own]
        # Asked for twice, as nobody has answered.
        wait_until(lambda: all(knocks(bridge, address) > 1 for address in own), "a second attempt")
        assert not [client for client in clients if connected(client)]
        assert not start.done()
        assert greeter.peers == before
        assert not said_by(bridge, own)
        assert bridge.announced() >= {ip_address(address) for address in own}
        opened.touch()
        start.result()
        assert outcome(lane, container).message == "restored"
        assert not booted_cold(container)
        for client in clients:
            client.settimeout(60)
            assert client.recv(64) == b"served"
        wait_until(lambda: set(greeter.peers) >= set(own), "connections of the worker")


def knocks(bridge: Bridge, address: str) -> int:
    """How often a connection to an address of the pod was asked for."""
    place = (ip_address(address), PORT)
    return sum(p.begins and (p.target, p.port) == place for p in bridge.packets())


def said_by(bridge: Bridge, own: list[str]) -> list[object]:
    """What has come from the pod's addresses, but for its talk with its neighbours."""
    sources = {ip_address(address) for address in own}
    return [p for p in bridge.packets() if p.source in sources and not p.discovers]


def connected(client: socket.socket) -> bool:
    """Whether the connection that was asked for is there."""
    try:
        client.getpeername()
    except OSError:
        return False
    return True
