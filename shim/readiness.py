"""Waiting until a worker says that it is warm: the probe of an annotation, asked until it answers.

Nothing here trusts the container: a path is walked inside its root without following links, a
server is asked in the pod's network namespace, a command runs in the container through the runtime.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPException

from shim.annotations import Probe
from shim.errors import NotFound, ThawError
from shim.namespaces import inside
from shim.work import Work
from shim.worker.actions import Worker, ask_status, connection, execute
from shim.worker.control import find

_FIRST = 0.02  # seconds between two questions, at first …
_LAST = 1.0  # … and after a while
_PATIENCE = 5.0  # seconds for one answer
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
            return _in_network(init, partial(_answers, int(probe.target)))
        if probe.kind == "http":
            port, _, path = probe.target.partition("/")
            return _in_network(init, partial(_serves, int(port), f"/{path}"))
        return execute(probe.target, Worker(work.id, init, work.runc), _PATIENCE).status == 0
    except (OSError, HTTPException, ThawError):
        return False


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


def _in_network(init: int, question: Callable[[float], bool]) -> bool:
    """Ask it there, with the moment of the monotonic clock at which there must be an answer."""
    ends = time.monotonic() + _PATIENCE
    return inside(f"/proc/{init}/ns/net", "net", lambda: question(ends))


def _answers(port: int, ends: float) -> bool:
    with connection(port, ends) as connected:
        return connected is not None


def _serves(port: int, path: str, ends: float) -> bool:
    """Whether a GET is answered with 200 to 399, as kubelet's probes want it."""
    with connection(port, ends) as connected:
        return connected is not None and 200 <= ask_status(connected, path) < 400
