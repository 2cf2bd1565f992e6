"""What happens beside a container that has booted cold, for the sake of the next one.

Its snapshot is made once it is warm, or the artifact that it was to come from is pulled. Both are
an engine's work; here are the threads that wait for it, and what follows: a container whose
snapshot was all that was wanted is ended, and a worker that waits for a snapshot which will not be
made is told to go on. Only one that goes on is registered: nobody may send work to one that is put
to sleep, frozen or ended, and no snapshot may have work in it.
"""

from __future__ import annotations

from shim import log
from shim.annotations import CONTAINER_NAME
from shim.bundle import annotations_of
from shim.conduct import CONTRACT
from shim.errors import Cancelled, GpuLost, ThawError
from shim.lean.threads import Event, Lock, start
from shim.reference import AUTO
from shim.task.engine import Engine
from shim.task.restoration import describe
from shim.task.signals import KILL, TERM
from shim.worker.control import RESTORED, SAVED, Control, find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.conduct import Checkpointing
    from shim.task.container import Container
    from shim.task.source import Origins

GRACE = 10.0  # seconds for a worker to end by itself, and then on SIGTERM
_FIRST = 0.05  # seconds between two looks into the control directory, at first …
_LAST = 1.0  # … and after a while


class Aside:
    """All of it: begun at most once, cancelled when the container is over."""

    def __init__(self, container: Container, origins: Origins | None) -> None:
        self._container = container
        self._making = origins.making if origins is not None else None
        self._pulled = origins.pull if origins is not None else ""
        self._waits = origins is not None and origins.waits
        source = origins.source if origins is not None else None
        # What somebody has named is not ours to replace, nor is another one than was asked for.
        auto = self._making is not None and self._making.auto
        self._derived = auto and source is not None and source.name == AUTO
        self._lock = Lock()
        self._engines: list[Engine] = []  # those that nothing is lost with
        self._awaiting: Engine | None = None  # the one that waits until it is warm
        self._warm = False  # its probe has said so
        self._stopping = False
        self._over = Event()
        self._anew = False

    @property
    def makes(self) -> bool:
        """Whether a snapshot is to be made, so that a worker is registered here, and not before."""
        return self._making is not None

    def begin(self, *, anew: bool) -> None:
        """Go about it in threads; what goes wrong is only logged.

        `anew`: there is a snapshot, of which nothing can be restored here.
        """
        self._anew = anew and self._derived
        if self._pulled:
            start(self._pull)
        if self._making is not None or self._waits:
            start(self._see_it_off)

    def stop(self) -> None:
        """The container is told to stop: what would be restored from it now would do the same."""
        with self._lock:
            self._stopping = True
            if self._awaiting is not None:
                self._awaiting.dismiss()
        self._container.dumping.stop()

    def cancel(self) -> None:
        """End it, now or before it begins. A CRIU that is at work ends by itself."""
        with self._lock:
            self._over.set()
            for engine in self._engines:
                engine.dismiss()
        self._container.dumping.end()

    def _attempt(self, what: str, work: Callable[[], bool]) -> bool:
        """Whether it came to what it was meant for."""
        container = self._container
        try:
            return work()
        except (ThawError, OSError) as error:
            if self._stopping or isinstance(error, Cancelled):
                log.debug("not done", container=container.id, what=what, because=error)
            else:
                log.warning(f"could not {what} a snapshot", container=container.id, error=error)
        return False

    def _pull(self) -> None:
        self._attempt("pull", self._fetch)

    def _fetch(self) -> bool:
        container, name = self._container, self._pulled
        engine = self._begun()
        try:
            engine.ask(self._request("pull", name=name), [], None)
        finally:
            self._done_with(engine)
        log.info("pulled", container=container.id, snapshot=name)
        return True

    def _see_it_off(self) -> None:
        """Make the snapshot, if one is to be made; then the worker ends or goes on."""
        making = self._making
        if making is None or not self._attempt("make", lambda: self._make(making)):
            if self._waits:
                self._let_go_on()
        elif making.exits:
            self._end(making)
            return
        if making is not None:
            self._join(making)

    def _join(self, making: Checkpointing) -> None:
        """Register the worker, which goes on; if it is not known to be warm, once it is."""
        container = self._container
        if container.membership is None or self._stopping or self._over.is_set():
            return
        # One of the contract has been let go on, or there is nowhere where it could say anything.
        late = self._warm or making.ready.kind == CONTRACT.kind
        try:
            container.membership.begin(container.identity, restored=False, late=late)
        except (ThawError, OSError) as error:
            log.warning("not registered", container=container.id, error=error)

    def _make(self, making: Checkpointing) -> bool:
        from shim.task.checkpointing import dump

        container, ready = self._container, making.ready
        if self._name in container.host.lost:
            because = "the worker of this container that was here before was lost over its snapshot"
            log.warning("no snapshot made", container=container.id, because=because)
            return False
        engine = self._begun(awaits=True)
        try:
            reply = engine.ask(
                self._request(
                    "await",
                    make=making.name,
                    ready={"kind": ready.kind, "target": ready.target},
                    pid=container.init.pid,
                    anew=self._anew,
                ),
                [],
                None,
            )
            if not reply["name"]:
                log.info("no snapshot made", container=container.id, because=reply["because"])
                return False
            self._warm = True
            work = {"name": reply["name"], "path": "", "exit": False, "ends": making.exits}
            work.update(by=AUTO if making.auto else "annotation", replace=self._anew)
            made = dump(container, work, self._keep(engine))
        except GpuLost:
            container.host.lost.add(self._name)  # it is started anew: that must not go on for ever
            raise
        finally:
            self._done_with(engine)
        fields = {"container": container.id, "snapshot": reply["name"]}
        fields["frozen"] = f"{made['frozen']:.3f}"
        fields["quiet"] = f"{made['quiet']:.3f}"
        if made["unresumed"]:
            log.warning("snapshot made, its worker not resumed", error=made["unresumed"], **fields)
        else:
            log.info("snapshot made", **fields)
        return True

    def _end(self, making: Checkpointing) -> None:
        """End the container: a worker of the contract does so by itself, if it is given time."""
        container = self._container
        self._tell(SAVED)
        if making.ready.kind == CONTRACT.kind and self._over.wait(GRACE):
            return
        try:
            container.kill("", TERM, everyone=False)
            if not self._over.wait(GRACE):
                container.kill("", KILL, everyone=False)
        except ThawError as error:
            if not self._over.is_set():
                log.warning("not ended after its snapshot", container=container.id, error=error)

    def _let_go_on(self) -> None:
        """Wait until the worker waits, too: one that opens the FIFO must not miss the event."""
        control = self._control()
        pause = _FIRST
        try:
            while control is not None and not control.ready():
                if self._over.wait(pause):
                    return
                pause = min(pause * 1.5, _LAST)
        except (ThawError, OSError) as error:
            if not self._over.is_set():  # its directory goes with it
                log.warning("cannot see the worker", container=self._container.id, error=error)
            return
        self._tell(RESTORED)

    def _tell(self, event: str) -> None:
        control = self._control()
        if control is None:
            return
        try:
            control.tell(event)
        except (ThawError, OSError) as error:
            log.warning("worker not told", container=self._container.id, event=event, error=error)

    def _control(self) -> Control | None:
        try:
            return find(self._container.bundle.spec())
        except (ThawError, OSError) as error:
            log.debug("no control directory", container=self._container.id, error=error)
            return None

    @property
    def _name(self) -> str:
        """What the pod calls the container, whichever attempt it is."""
        return annotations_of(self._container.bundle.spec()).get(CONTAINER_NAME, self._container.id)

    def _request(self, verb: str, **details: Any) -> dict[str, Any]:
        return {**describe(self._container, self._container.host), "verb": verb, **details}

    def _begun(self, *, awaits: bool = False) -> Engine:
        """The engine for it. Children stay when it dies: one of them may be a CRIU that dumps."""
        container = self._container
        with self._lock:
            self._refuse_the_dead(stopping=awaits)
            engine = Engine(container.host.reaper, container.runc.env, children_go_too=False)
            self._engines.append(engine)
            if awaits:
                self._awaiting = engine
            return engine

    def _keep(self, engine: Engine) -> Engine:
        """Leave it alone from here on: whether its dump can be broken off, Dumping knows."""
        with self._lock:
            self._refuse_the_dead(stopping=True)
            self._engines.remove(engine)
            self._awaiting = None
        return engine

    def _refuse_the_dead(self, *, stopping: bool) -> None:
        if self._over.is_set():
            raise Cancelled(f"container {self._container.id} is over")
        if stopping and self._stopping:
            raise Cancelled(f"container {self._container.id} has been told to stop")

    def _done_with(self, engine: Engine) -> None:
        with self._lock:
            if engine in self._engines:
                self._engines.remove(engine)
            if engine is self._awaiting:
                self._awaiting = None
        engine.close()
