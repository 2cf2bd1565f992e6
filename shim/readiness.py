"""Waiting until a worker says that it is warm: the probe of an annotation, asked until it answers.

Nothing here trusts the container: a path is walked inside its root without following links, a
server is asked in the pod's network namespace, a command runs in the container through the runtime.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
from collections.abc import Iterator
from itertools import pairwise

from shim.annotations import Probe
from shim.errors import NotFound, ThawError
from shim.namespaces import inside
from shim.work import Work

_FIRST = 0.02  # seconds between two questions, at first …
_LAST = 1.0  # … and after a while
_PATIENCE = 5.0  # seconds for one answer
_LOOPBACK = ("127.0.0.1", "::1")
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def wait(probe: Probe, work: Work) -> None:
    """Return once the probe says yes. Raises NotFound when the container's init has ended."""
    init = int(work.details["pid"])
    ended = os.pidfd_open(init)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    pause = _FIRST
    try:
        while not ready(probe, work):
            if poll.poll(pause * 1000):
                raise NotFound(f"container {work.id} ended before it was ready")
            pause = min(pause * 1.5, _LAST)
    finally:
        os.close(ended)


def ready(probe: Probe, work: Work) -> bool:
    """Ask once."""
    init = int(work.details["pid"])
    try:
        if probe.kind == "file":
            return _exists(f"/proc/{init}/root", probe.target)
        if probe.kind == "tcp":
            return _in_network(init, lambda: _answers(init, int(probe.target)))
        if probe.kind == "http":
            port, _, path = probe.target.partition("/")
            return _in_network(init, lambda: _serves(init, int(port), f"/{path}"))
        work.runc.call_inside(["/bin/sh", "-c", probe.target])
        return True
    except (OSError, ThawError):
        return False


def addresses(init: int) -> list[str]:
    """The addresses in the network namespace of a process, loopback first.

    From /proc/PID/net: fib_trie lists the local IPv4 ones, if_inet6 those of IPv6.
    """
    found = list(_LOOPBACK)
    with open(f"/proc/{init}/net/fib_trie") as file:
        lines = [line.strip() for line in file]
    for before, line in pairwise(lines):
        if line == "/32 host LOCAL":
            found.append(before.removeprefix("|-- "))
    try:
        with open(f"/proc/{init}/net/if_inet6") as file:
            found += [_dotted(line.split()) for line in file]
    except FileNotFoundError:
        pass  # without IPv6
    return list(dict.fromkeys(found))


def _dotted(fields: list[str]) -> str:
    address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[0]))
    link_local = fields[3] == "20"
    return f"{address}%{int(fields[1], 16)}" if link_local else address


def _exists(root: str, path: str) -> bool:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.strip("/").split("/"):
            if part in ("..", ""):
                return False
            deeper = os.open(part, _PATH, dir_fd=fd)
            os.close(fd)
            fd = deeper
        return True
    finally:
        os.close(fd)


def _in_network(init: int, question: object) -> bool:
    assert callable(question)
    return bool(inside(f"/proc/{init}/ns/net", "net", question))


def _answers(init: int, port: int) -> bool:
    return any(True for _ in _connections(init, port))


def _serves(init: int, port: int, path: str) -> bool:
    """Whether a GET is answered with 200 to 399, as kubelet's probes want it."""
    for connected in _connections(init, port):
        connection = http.client.HTTPConnection("localhost", port, timeout=_PATIENCE)
        connection.sock = connected
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            return 200 <= connection.getresponse().status < 400
        except http.client.HTTPException:
            return False
        finally:
            connection.close()
    return False


def _connections(init: int, port: int) -> Iterator[socket.socket]:
    """A connection to the first address that takes one."""
    for address in addresses(init):
        try:
            connected = socket.create_connection((address, port), timeout=_PATIENCE)
        except OSError:
            continue
        try:
            yield connected
        finally:
            connected.close()
        return
