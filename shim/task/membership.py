"""A container's membership in a registry, as the daemon sees it: begun, ended, and what is said.

A process of its own keeps it (registration/serving.py), and is replaced when it dies. Nothing here
waits for a registry for longer than it was told to, and it is ended once, whoever is first: a Kill,
a Delete, the exit.

A worker that was told to stop is out for good, even should the signal not end it: how long one
takes to answer its last requests is not known, and it must be sent no others meanwhile.
"""

from __future__ import annotations

import os
import time

from shim import log
from shim.annotations import READY, is_annotated, probe, value
from shim.conduct import registration
from shim.errors import Cancelled, DeadlineExceeded, RegistrationFailed, RestoreFailed, ThawError
from shim.lean.threads import Event, Lock, start
from shim.task.engine import Engine
from shim.task.restoration import describe
from shim.task.signals import KILL, ends

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
_START = 10.0  # seconds for the process to start, beyond what the registry may take
_OWN = 1.0  # seconds of a caller's time that are left for what it has to do itself
_FIRST, _LAST = 0.25, 15.0  # seconds until a process is replaced, at first and after a while


class Membership:
    """One registration; `asked` is what the container's annotations say.

    `ready`, if they name it, is what a worker that boots cold is waited for.
    """

    def __init__(self, container: Container, asked: Registration, ready: Probe | None) -> None:
        self._container = container
        self._asked = asked
        self._ready = ready
        self._lock = Lock()
        self._begun = False
        self._over = Event()  # it shall not be registered, or no longer
        self._engine: Engine | None = None  # the process; none between one and the next
        self._kept = False  # by the process, which listens; before that it is being asked
        self._left = Event()  # nothing is registered, and nobody tries
        self._error = ""  # why it could not be registered, as it was last said

    def begin(
        self,
        identity: Mapping[str, Any],
        *,
        restored: bool,
        deadline: float | None = None,
        late: bool = False,
    ) -> None:
        """Register the running container, or begin to try; not if it was told to stop before.

        Raises what forbids it to run on, as far as that is known by the caller's `deadline`, on
        the monotonic clock. A `late` one is known to be ready, and its Start has been answered:
        nothing is raised, nobody waits, and what must be registered and cannot be is ended.
        """
        with self._lock:
            if self._over.is_set():
                return
            self._begun = True
        container, ready = self._container, None if restored or late else self._ready
        request = describe(container, container.host)
        request.update(verb="register", pid=container.init.pid, identity=dict(identity))
        if ready is not None:
            request["ready"] = {"kind": ready.kind, "target": ready.target}
        if self._asked.must and ready is None and not late:
            self._begin_now(request, deadline)
        else:
            start(lambda: self._begin_aside(request))

    def end_before(self, signal: int, deadline: float | None) -> None:
        """Deregister if the signal is one that ends a worker.

        It takes no more than what the caller's `deadline`, on the monotonic clock, leaves.
        """
        if not ends(signal):
            return
        seconds = SHORT if signal == KILL else PATIENCE
        if deadline is not None:
            seconds = min(seconds, max(0.0, deadline - time.monotonic() - _OWN))
        self.end(seconds)

    def end(self, seconds: float = SHORT) -> None:
        """Deregister, and wait for it, at most so long; the first caller does it, others wait."""
        with self._lock:
            first = not self._over.is_set()
            self._over.set()
            begun, engine, kept = self._begun, self._engine, self._kept
        if not begun:
            return
        if first and engine is not None:
            if kept:
                request = describe(self._container, self._container.host)
                engine.tell({**request, "verb": "deregister", "seconds": seconds})
            else:
                engine.dismiss()  # what comes of the attempt, the process takes back
        if not self._left.wait(seconds):
            log.warning("not deregistered in time", container=self._container.id, at=self._asked)

    # -- the first attempt ---------------------------------------------------------------------

    def _begin_now(self, request: Mapping[str, Any], deadline: float | None) -> None:
        try:
            engine = self._registered(request, deadline)
        except Cancelled:  # by a signal, which is about to end it
            start(self._see_it_out)
        except ThawError as error:
            self._left.set()
            self._warn(error)
            raise
        else:
            start(lambda: self._keep(request, engine))

    def _begin_aside(self, request: Mapping[str, Any]) -> None:
        try:
            engine = self._registered(request)
        except Cancelled:
            self._see_it_out()
        except ThawError as error:
            self._warn(error)
            if self._asked.must:
                self._left.set()
                self._refuse()
            else:
                self._keep(request, None)
        else:
            self._keep(request, engine)

    def _refuse(self) -> None:
        """End the container, which must not run without."""
        if self._over.is_set():
            return
        log.error("ended, as it must be registered", container=self._container.id)
        try:
            self._container.kill("", KILL, everyone=False)
        except ThawError as error:
            log.debug("it has ended already", container=self._container.id, error=error)

    # -- its process ---------------------------------------------------------------------------

    def _keep(self, request: Mapping[str, Any], engine: Engine | None) -> None:
        """See to it, in a thread, that there is a process that does it until it is over."""
        pause = _FIRST
        while True:
            if engine is not None:
                began = time.monotonic()
                self._listen(engine)
                request = {**request, "ready": None}  # it was, or it would not have answered
                if time.monotonic() - began > _LAST:
                    pause = _FIRST
            if self._over.wait(pause):
                break
            pause = min(pause * 2, _LAST)
            try:
                engine = self._registered(request)
            except Cancelled:
                self._see_it_out()
                return
            except ThawError as error:
                engine = None
                self._warn(error)
        self._left.set()

    def _registered(self, request: Mapping[str, Any], deadline: float | None = None) -> Engine:
        """A process that has answered, and keeps it from here on.

        Raises Cancelled when it is over; then the process takes back what it may have done.
        """
        seconds: float | None = None
        if not request.get("ready"):
            seconds = self._asked.timeout + _START
        if deadline is not None:  # the process hears of an earlier one, so that it can say more
            request = {**request, "deadline": deadline - 2 * _OWN}
            left = max(0.0, deadline - _OWN - time.monotonic())
            seconds = left if seconds is None else min(seconds, left)
        engine = self._started()
        try:
            reply = engine.ask(request, [], seconds)
        except Cancelled:
            raise
        except ThawError as error:
            self._lose(engine)
            engine.end()
            engine.release()
            if isinstance(error, (DeadlineExceeded, RestoreFailed)):
                raise RegistrationFailed(f"its process failed: {error.message}") from error
            raise
        with self._lock:
            if self._over.is_set():  # it has been dismissed just now
                raise Cancelled("the container is over")
            self._kept = True
        self._error = ""
        self._heard(reply)
        return engine

    def _started(self) -> Engine:
        container = self._container
        try:
            engine = Engine(container.host.reaper, container.runc.env, program=PROGRAM)
        except OSError as error:
            raise RegistrationFailed(f"cannot start its process: {error.strerror}") from error
        with self._lock:
            self._engine = engine
            if not self._over.is_set():
                return engine
        engine.dismiss()
        raise Cancelled("the container is over")

    def _lose(self, engine: Engine) -> None:
        """It is not the process any longer; that an end may be under way, the caller sees then."""
        with self._lock:
            if self._engine is engine:
                self._engine, self._kept = None, False

    def _see_it_out(self) -> None:
        """Wait until a process that was dismissed has taken back what it has done."""
        engine = self._engine
        if engine is not None:
            if not engine.wait(self._asked.timeout + _START):
                engine.end()
            engine.release()
        self._left.set()

    # -- what it says --------------------------------------------------------------------------

    def _listen(self, engine: Engine) -> None:
        """Until it has deregistered, or died."""
        done = False
        while not done and (said := engine.listen()) is not None:
            done = self._heard(said)
        self._lose(engine)
        if not done:
            what = "not deregistered" if self._over.is_set() else "not kept any longer"
            self._say(what, {"because": "its process has died"})
        if self._over.is_set():
            self._left.set()  # nobody need wait for the process itself
        engine.close()

    def _heard(self, said: Mapping[str, Any]) -> bool:
        """Tell the log; whether that was the last word. An answer may come after other things."""
        event = said.get("event")
        if event == "deregistered":
            if said["because"]:
                self._say("not deregistered", said)
            else:
                log.info("deregistered", container=self._container.id, at=self._asked)
        elif event is not None:
            self._say(str(event), said)
        elif said.get("registered"):
            log.info("registered", container=self._container.id, at=self._asked)
        else:
            self._say("not registered yet", said)
        return event == "deregistered"

    def _warn(self, error: ThawError) -> None:
        """Say that it is not registered; of failures in a row only what is new."""
        if str(error) != self._error:
            self._error = str(error)
            container = self._container.id
            log.warning("not registered", container=container, at=self._asked, error=error)

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
