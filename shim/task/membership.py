"""A container's membership in a registry, as the daemon sees it: begun, ended, and what is said.

A process of its own keeps it (registration/serving.py). Nothing here waits for a registry for
longer than it was told to, and it is ended once, whoever is first: a Kill, a Delete, the exit.
"""

from __future__ import annotations

import os
import time

from shim import log
from shim.annotations import READY, is_annotated, probe, value
from shim.conduct import registration
from shim.errors import Cancelled, ThawError
from shim.lean.threads import Event, Lock, start
from shim.task.engine import Engine
from shim.task.restoration import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from shim.annotations import Probe
    from shim.conduct import Registration
    from shim.task.container import Container

PROGRAM = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/registration/serving.py"
PATIENCE = 5.0  # seconds that a Kill waits for the registry, at most
SHORT = 1.5  # the same for a SIGKILL, and for a Delete
# Whatever stops a worker that has time to end: INT, QUIT, TERM, WINCH (of httpd), PWR and RTMIN+3
# (of systemd); the others tell it something.
STOPS = (2, 3, 15, 28, 30, 37)
_KILL = 9
_START = 10.0  # seconds for the process to start, beyond what the registry may take
_OWN = 1.0  # seconds of a caller's time that are left for the signal itself


class Membership:
    """One registration; `asked` is what the container's annotations say.

    `ready`, if they name it, is what a worker that boots cold is waited for.
    """

    def __init__(self, container: Container, asked: Registration, ready: Probe | None) -> None:
        self._container = container
        self._asked = asked
        self._ready = ready
        self._lock = Lock()
        self._engine: Engine | None = None
        self._kept = False  # by the engine, which listens; before that it is being asked
        self._over = False
        self._left = Event()

    def begin(self, identity: Mapping[str, Any], *, restored: bool) -> None:
        """Register the running container, or begin to try.

        Raises what forbids it to run on, as far as that can be known at once.
        """
        ready = None if restored else self._ready
        engine = Engine(self._container.host.reaper, self._container.runc.env, program=PROGRAM)
        with self._lock:
            self._engine = engine
        if self._asked.must and ready is None:
            self._register(engine, identity, ready)
        else:
            start(lambda: self._register_aside(engine, identity, ready))

    def end_before(self, signal: int, deadline: float | None) -> None:
        """Deregister if the signal is one that ends a worker.

        It takes no more than what the caller's `deadline`, on the monotonic clock, leaves.
        """
        if signal not in (*STOPS, _KILL):
            return
        seconds = SHORT if signal == _KILL else PATIENCE
        if deadline is not None:
            seconds = min(seconds, max(0.0, deadline - time.monotonic() - _OWN))
        self.end(seconds)

    def end(self, seconds: float = SHORT) -> None:
        """Deregister, and wait for it, at most so long; the first caller does it, others wait."""
        with self._lock:
            engine, self._engine = self._engine, None
            kept, self._over = self._kept, True
        if engine is None and not kept:
            return  # never begun, or given up
        if engine is not None and kept:
            request = describe(self._container, self._container.host)
            engine.tell({**request, "verb": "deregister", "seconds": seconds})
        elif engine is not None:
            engine.dismiss()  # an attempt is under way: what comes of it, the process takes back
            if not engine.wait(seconds):
                self._too_late()
            return
        if not self._left.wait(seconds):
            self._too_late()
        if engine is not None:
            engine.dismiss()

    def _too_late(self) -> None:
        log.warning("not deregistered in time", container=self._container.id, at=self._asked)

    def _register_aside(
        self, engine: Engine, identity: Mapping[str, Any], ready: Probe | None
    ) -> None:
        try:
            self._register(engine, identity, ready)
        except Cancelled:
            return
        except ThawError:
            if not self._asked.must or self._over:
                return
            log.error("ended, as it must be registered", container=self._container.id)
            try:
                self._container.kill("", _KILL, everyone=False)
            except ThawError as error:
                log.debug("it has ended already", container=self._container.id, error=error)

    def _register(self, engine: Engine, identity: Mapping[str, Any], ready: Probe | None) -> None:
        container = self._container
        request = describe(container, container.host)
        request.update(verb="register", pid=container.init.pid, identity=dict(identity))
        seconds: float | None = self._asked.timeout + _START
        if ready is not None:
            request["ready"] = {"kind": ready.kind, "target": ready.target}
            seconds = None
        try:
            reply = engine.ask(request, [], seconds)
        except Cancelled:
            engine.leave()  # it takes back what it may have done
            raise
        except ThawError as error:
            with self._lock:
                self._engine = None
            engine.end()
            engine.release()
            log.warning("not registered", container=container.id, at=self._asked, error=error)
            raise
        with self._lock:
            self._kept = True
            over = self._over
        if over:
            engine.leave()
            self._left.set()
            return
        start(lambda: self._listen(engine))
        if reply["registered"]:
            log.info("registered", container=container.id, at=self._asked)
        else:
            self._say("not registered yet", reply)

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
    asked = registration(notes) if is_annotated(notes) else None
    if asked is None:
        return None
    ready = probe(notes) if value(notes, READY) is not None else None
    return Membership(container, asked, ready)
