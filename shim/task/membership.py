"""A container's membership in a registry, as the daemon sees it: begun, ended, and what is said.

A process of its own keeps it (registration/serving.py). Nothing here waits for a registry for
longer than it was told to, and it is ended once, whoever is first: a Kill, a Delete, the exit.
"""

from __future__ import annotations

import os

from shim import log
from shim.conduct import registration
from shim.errors import ThawError
from shim.lean.threads import Event, Lock, start
from shim.task.engine import Engine
from shim.task.restoration import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from shim.conduct import Registration
    from shim.task.container import Container

PROGRAM = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/registration/serving.py"
PATIENCE = 5.0  # seconds that a Kill waits for the registry, at most
SHORT = 1.5  # the same for a SIGKILL, and for a Delete
_START = 10.0  # seconds for the process to start, beyond what the registry may take


class Membership:
    """One registration; `asked` is what the container's annotations say."""

    def __init__(self, container: Container, asked: Registration) -> None:
        self._container = container
        self._asked = asked
        self._lock = Lock()
        self._engine: Engine | None = None
        self._left = Event()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Register the running container, or begin to try. Raises what forbids it to run on."""
        container = self._container
        env = container.runc.env
        engine = Engine(container.host.reaper, env, program=PROGRAM)
        request = describe(container, container.host)
        request.update(verb="register", pid=container.init.pid, identity=dict(identity))
        try:
            reply = engine.ask(request, [], self._asked.timeout + _START)
        except ThawError as error:
            engine.end()
            engine.release()
            log.warning("not registered", container=container.id, error=error)
            raise
        self._engine = engine
        start(lambda: self._listen(engine))
        if reply["registered"]:
            log.info("registered", container=container.id, at=self._asked)
        else:
            self._say("not registered yet", reply)

    def end(self, seconds: float = PATIENCE) -> None:
        """Deregister, and wait for it, at most so long; the first caller does it, others wait."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            request = describe(self._container, self._container.host)
            engine.tell({**request, "verb": "deregister", "seconds": seconds})
        elif not self._left.is_set():
            return  # never begun
        if not self._left.wait(seconds):
            log.warning("not deregistered in time", container=self._container.id, at=self._asked)
        if engine is not None:
            engine.dismiss()

    def _listen(self, engine: Engine) -> None:
        while (said := engine.listen()) is not None:
            if said.get("event") == "deregistered":
                if said["because"]:
                    self._say("not deregistered", said)
                else:
                    log.info("deregistered", container=self._container.id, at=self._asked)
                break
            self._say(str(said.get("event", "unknown")), said)
        with self._lock:
            died, self._engine = self._engine is engine, None
        if died:
            self._say("not kept any longer", {"because": "its process has died"})
        self._left.set()
        engine.close()

    def _say(self, event: str, said: Mapping[str, Any]) -> None:
        tell = log.info if event == "registered" else log.warning
        tell(
            f"registration: {event}",
            container=self._container.id,
            at=self._asked,
            because=said.get("because", ""),
        )


def membership_of(container: Container, notes: Mapping[str, str]) -> Membership | None:
    """The membership that a container's annotations ask for. Raises BadAnnotation."""
    asked = registration(notes)
    return None if asked is None else Membership(container, asked)
