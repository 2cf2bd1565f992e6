"""Waiting until a worker says that it is warm: the probe of an annotation, asked until it answers.

Nothing here trusts the container: a path is walked inside its root without following links, a
server is asked in the pod's network namespace, a command runs in the container through the runtime.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from itertools import pairwise

from shim.annotations import Probe
from shim.errors import NotFound, ThawError
from shim.namespaces import inside
from shim.work import Work
from shim.worker.actions import Worker, execute
from shim.worker.control import find

_FIRST = 0.02  # seconds between two questions, at first …
_LAST = 1.0  # … and after a while
_PATIENCE = 5.0  # seconds for one answer
_LONGEST_LINE = 4096  # bytes
_LOOPBACK = ("127.0.0.1", "::1")
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def wait(probe: Probe, work: Work) -> None:
    """Return once the probe says yes. Raises NotFound when the container's init has ended."""
    pause = _FIRST
    while not ready(probe, work):
        ensure_running(work, pause)
        pause = min(pause * 1.5, _LAST)


def ensure_running(work: Work, seconds: float) -> None:
    """Let some time pass. Raises NotFound if the container's init has ended, or ends meanwhile."""
    gone = NotFound(f"container {work.id} ended before it was ready")
    try:
        init = os.pidfd_open(int(work.details["pid"]))
    except ProcessLookupError:
        raise gone from None
    try:
        poll = select.poll()
        poll.register(init, select.POLLIN)
        if poll.poll(seconds * 1000):
            raise gone
    finally:
        os.close(init)


def ready(probe: Probe, work: Work) -> bool:
    """Ask once."""
    init = int(work.details["pid"])
    try:
        if probe.kind == "contract":
            control = find(work.bundle.spec())
            return control is not None and control.ready()
        if probe.kind == "file":
            return _exists(f"/proc/{init}/root", probe.target)
        if probe.kind == "tcp":
            return _in_network(init, lambda: _answers(init, int(probe.target)))
        if probe.kind == "http":
            port, _, path = probe.target.partition("/")
            return _in_network(init, lambda: _serves(init, int(port), f"/{path}"))
        return execute(probe.target, Worker(work.id, init, work.runc), _PATIENCE).status == 0
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
        request = f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n"
        connected.sendall(request.encode("ascii"))
        version, _, rest = _first_line(connected).partition(b" ")
        status = rest[:3]
        return version.startswith(b"HTTP/1.") and status.isdigit() and 200 <= int(status) < 400
    return False


def _first_line(connected: socket.socket) -> bytes:
    """What a server says first. It may say anything, for as long as it likes: not to us."""
    ends = time.monotonic() + _PATIENCE
    said = b""
    while b"\r\n" not in said and len(said) < _LONGEST_LINE:
        connected.settimeout(max(0.001, ends - time.monotonic()))
        more = connected.recv(_LONGEST_LINE)
        if not more or time.monotonic() > ends:
            return b""
        said += more
    return said.partition(b"\r\n")[0]


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
