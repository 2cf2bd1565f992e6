"""The engine's verbs `register` and `deregister`: one container's membership, in a process for it.

    register      {…, "pid": init's, "identity": what identity.json says}
                  answers {"registered": true or false, "because": why not yet}; the process stays,
                  and says on the same socket what happens: {"event": "lost", "because": …}
    deregister    {"seconds": at most so many} answers {"because": why it could not be removed}

When the daemon is gone, the entry is removed as well as that can be done, and the process ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shim.conduct import Registration, registration
from shim.errors import FailedPrecondition, RegistrationFailed
from shim.registration.backend import Backend
from shim.registration.registrar import Registrar
from shim.work import Work
from shim.worker import identity
from shim.worker.actions import Worker

LAST_SECONDS = 2.0  # for deregistering when nobody waits for it

Tell = Callable[[Mapping[str, Any]], None]


class Registering:
    """One container's registration; `tell` sends the daemon a line."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._registrar: Registrar | None = None

    def begin(self, work: Work) -> dict[str, Any]:
        """Register; this process goes where the pod is. Raises RegistrationFailed and others."""
        spec = work.bundle.spec()
        asked = registration(spec.get("annotations") or {})
        if asked is None:
            raise FailedPrecondition(f"{work.id} asks for no registration")
        worker = Worker(work.id, int(work.details["pid"]), work.runc)
        if asked.kind != "exec":
            _enter(worker.pid, spec)
        backend = backend_of(asked, worker, identity.public(work.details["identity"]))
        self._registrar = Registrar(backend, asked, self._say)
        because = self._registrar.begin()
        return {"registered": not because, "because": because}

    def end(self, work: Work) -> dict[str, Any]:
        """Deregister."""
        return {"because": self._end(float(work.details["seconds"]))}

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
