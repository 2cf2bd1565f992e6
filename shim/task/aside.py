"""What happens beside a container that has booted cold, for the sake of the next one.

Its snapshot is made once it is warm (`auto`), or the artifact that it was to come from is pulled.
Both are an engine's work; here is a thread that waits for it, and that ends it with the container.
"""

from __future__ import annotations

from shim import log
from shim.errors import Cancelled, ThawError
from shim.lean.threads import Lock, start
from shim.task.engine import Engine
from shim.task.restoration import describe
from shim.task.source import MAKE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.task.container import Container
    from shim.task.source import Origins


class Aside:
    """One such piece of work: begun at most once, cancelled when the container is over."""

    def __init__(self, container: Container, origins: Origins) -> None:
        self._container = container
        self._origins = origins
        self._lock = Lock()
        self._engine: Engine | None = None
        self._over = False
        self._anew = False

    def begin(self, *, anew: bool) -> None:
        """Go about it in a thread; what goes wrong is only logged.

        `anew`: there is a snapshot, of which nothing can be restored here.
        """
        self._anew = anew
        if self._origins.aside and not self._over:
            start(self._run)

    def cancel(self) -> None:
        """End it, now or before it begins. A dump that is under way ends by itself."""
        with self._lock:
            self._over = True
            if self._engine is not None:
                self._engine.dismiss()

    def _run(self) -> None:
        container, what = self._container, self._origins.aside
        try:
            if what == MAKE:
                self._make()
            else:
                self._ask("pull", {"name": self._origins.name})
                log.info("pulled", container=container.id, snapshot=self._origins.name)
        except Cancelled:
            log.debug("not done, the container is over", container=container.id, what=what)
        except (ThawError, OSError) as error:
            log.warning(f"could not {what} a snapshot", container=container.id, error=error)

    def _make(self) -> None:
        from shim.task.checkpointing import dump

        container, ready = self._container, self._origins.ready
        assert ready is not None
        probe = {"kind": ready.kind, "target": ready.target}
        details = {"ready": probe, "pid": container.init.pid, "anew": self._anew}
        engine = self._begun()
        try:
            reply = engine.ask(
                {**describe(container, container.host), "verb": "await", **details}, [], None
            )
            if not reply["name"]:
                log.info("no snapshot made", container=container.id, because=reply["because"])
                return
            work = {"name": reply["name"], "path": "", "exit": False, "by": "auto"}
            work["replace"] = self._anew
            made = dump(container, work, self._keep(engine))
            log.info(
                "snapshot made",
                container=container.id,
                snapshot=reply["name"],
                frozen=f"{made['frozen']:.3f}",
            )
        finally:
            engine.close()

    def _ask(self, verb: str, details: dict[str, Any]) -> dict[str, Any]:
        engine = self._begun()
        try:
            request = {**describe(self._container, self._container.host), "verb": verb, **details}
            return engine.ask(request, [], None)
        finally:
            engine.close()

    def _begun(self) -> Engine:
        """The engine for it. Children stay when it dies: one of them may be a CRIU that dumps."""
        container = self._container
        with self._lock:
            if self._over:
                raise Cancelled(f"container {container.id} is over")
            self._engine = Engine(container.host.reaper, container.runc.env, children_go_too=False)
            return self._engine

    def _keep(self, engine: Engine) -> Engine:
        """Leave it alone from here on: a dump that is broken off would leave its tasks frozen."""
        with self._lock:
            if self._over:
                raise Cancelled(f"container {self._container.id} is over")
            self._engine = None
        return engine
