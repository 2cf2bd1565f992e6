"""The process that keeps one container registered, for as long as it lives.

    serving.py    requests come on descriptor 3, one JSON object a line, and answers go there

    register      {…, "pid": init's, "identity": what identity.json says but for its secrets,
                  "ready": the probe that is waited for, if any, "deadline": of the first attempt,
                  on the monotonic clock, if there is one}
                  is answered with {"registered": true or false, "because": why not yet}; what
                  happens later is said on the same socket: {"event": "lost", "because": …}
    deregister    {…, "seconds": at most so many} is answered with {"event": "deregistered",
                  "because": why it could not be removed}

When the daemon is gone, the entry is removed as well as that can be done, and the process ends. It
is not the engine's program, as it stays: it imports no more than its back end needs.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.insert(0, __file__.rpartition("/")[0].rpartition("/")[0].rpartition("/")[0])

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from shim.annotations import Probe
from shim.conduct import Registration, registration
from shim.errors import Cancelled, FailedPrecondition, RegistrationFailed, ThawError
from shim.readiness import ensure_running, ready
from shim.registration.backend import Backend
from shim.registration.registrar import Registrar
from shim.work import Work
from shim.worker.actions import Worker

SOCKET_FD = 3
LAST_SECONDS = 1.5  # for deregistering when nobody waits for it
_LEAST = 0.1  # seconds for an attempt, however late it is
_FIRST, _LAST = 0.05, 1.0  # seconds between two questions whether a worker is ready

Tell = Callable[[Mapping[str, Any]], None]


def main() -> None:
    """Serve until the daemon closes the socket, or dies."""
    daemon = socket.socket(fileno=SOCKET_FD)
    daemon.set_inheritable(False)

    def tell(line: Mapping[str, Any]) -> None:
        daemon.sendall(json.dumps(line).encode() + b"\n")

    poll = select.poll()
    poll.register(daemon, select.POLLRDHUP)
    registering = Registering(tell, lambda seconds: bool(poll.poll(seconds * 1000)))
    try:
        with daemon.makefile("rb") as requests:
            for line in requests:
                tell(_answer(registering, json.loads(line)))
    except OSError:
        pass  # the daemon is gone
    registering.release()


def _answer(registering: Registering, request: Mapping[str, Any]) -> dict[str, Any]:
    verbs = {"register": registering.begin, "deregister": registering.end}
    try:
        return verbs[request["verb"]](Work.parse(request))
    except ThawError as error:
        return _error(type(error).__name__, error.message, error.hint)
    except Exception as error:  # noqa: BLE001 - the daemon must hear of everything
        return _error("Unknown", f"{type(error).__name__}: {error}", "")


def _error(leaf: str, message: str, hint: str) -> dict[str, Any]:
    return {"error": {"class": leaf, "message": message, "hint": hint}}


class Registering:
    """One container's registration.

    `tell` sends the daemon a line, `gone` waits so many seconds for it to listen no longer.
    """

    def __init__(self, tell: Tell, gone: Callable[[float], bool]) -> None:
        self._tell = tell
        self._gone = gone
        self._registrar: Registrar | None = None

    def begin(self, work: Work) -> dict[str, Any]:
        """Register; this process goes where the pod is. Raises RegistrationFailed and others."""
        spec = work.bundle.spec()
        asked = registration(spec.get("annotations") or {})
        if asked is None:
            raise FailedPrecondition(f"{work.id} asks for no registration")
        self._await_ready(work)
        worker = Worker(work.id, int(work.details["pid"]), work.runc)
        if asked.kind != "exec":
            _enter(worker.pid, spec)
        backend = backend_of(asked, worker, work.details["identity"])
        self._registrar = Registrar(backend, asked, self._say)
        because = self._registrar.begin(_left(work.details.get("deadline")))
        return {"registered": not because, "because": because}

    def _await_ready(self, work: Work) -> None:
        """Wait until the worker is ready, if that is wanted. Raises NotFound once it has ended."""
        if not work.details.get("ready"):
            return
        probe, pause = Probe(**work.details["ready"]), _FIRST
        while not ready(probe, work):
            ensure_running(work, 0)
            if self._gone(pause):
                raise Cancelled(f"{work.id} shall not be registered any longer")
            pause = min(pause * 1.5, _LAST)

    def end(self, work: Work) -> dict[str, Any]:
        """Deregister."""
        because = self._end(float(work.details["seconds"]))
        return {"event": "deregistered", "because": because}

    def release(self) -> None:
        """Deregister, as nobody is there any longer."""
        self._end(LAST_SECONDS)

    def _end(self, seconds: float) -> str:
        registrar, self._registrar = self._registrar, None
        if registrar is None:
            return ""
        try:
            registrar.end(seconds)
        except RegistrationFailed as error:
            return str(error)
        return ""

    def _say(self, event: str, because: str) -> None:
        try:
            self._tell({"event": event, "because": because})
        except OSError:
            pass  # the daemon is gone, and this process about to go


def _left(deadline: float | None) -> float | None:
    """The seconds until then; None is for ever."""
    return None if deadline is None else max(_LEAST, deadline - time.monotonic())


def backend_of(asked: Registration, worker: Worker, known: Mapping[str, Any]) -> Backend:
    """The back end of a registration; `known` is the identity without its secrets."""
    if asked.kind == "exec":
        from shim.registration.script import Script

        return Script(asked, worker)
    if asked.kind == "etcd":
        from shim.registration.etcd import Etcd

        return Etcd(asked, known)
    from shim.registration.callback import Callback

    return Callback(asked, known)


def _enter(pid: int, spec: Mapping[str, Any]) -> None:
    from shim.registration.place import enter

    try:
        enter(pid, spec)
    except OSError as error:
        raise RegistrationFailed(f"cannot enter the pod's network: {error.strerror}") from error


if __name__ == "__main__":
    main()
    os.killpg(0, signal.SIGKILL)  # and whatever runs yet of a command
