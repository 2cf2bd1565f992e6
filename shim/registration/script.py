"""Registration by a command in the container, which is told `register` or `deregister`."""

from __future__ import annotations

from shim.conduct import Registration
from shim.errors import RegistrationFailed, WorkerFailed
from shim.registration.backend import Backend
from shim.worker.actions import Worker, execute
from shim.worker.readable import excerpt


class Script(Backend):
    """One command for /bin/sh; $1 is what it shall do."""

    def __init__(self, asked: Registration, worker: Worker) -> None:
        self._command = asked.target
        self._worker = worker

    def register(self, seconds: float) -> None:
        self._run("register", seconds)

    def deregister(self, seconds: float) -> None:
        self._run("deregister", seconds)

    def _run(self, what: str, seconds: float) -> None:
        try:
            done = execute(self._command, self._worker, seconds, [what])
        except WorkerFailed as error:
            raise RegistrationFailed(f"{what}: {error.message}", hint=error.hint) from error
        if done.status:
            said = excerpt(done.body)
            raise RegistrationFailed(f"{what}: exit status {done.status}: {said}".rstrip(": "))
