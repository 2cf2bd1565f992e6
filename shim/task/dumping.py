"""How far a dump is: as long as its worker is only being quiesced, it can be broken off.

Once CRIU is at work nobody may end it, as it would leave its tasks frozen and their network locked.
The daemon and the engine tell one another by files in the container's folder: the engine that CRIU
begins, the daemon that the container has been told to stop. Each writes its own before it looks for
the other's, so that one of them will see the other's, whoever is quicker.
"""

from __future__ import annotations

import os

from shim import log
from shim.errors import Cancelled
from shim.lean.threads import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.task.engine import Engine

BEGUN = "dumping"  # the engine's: CRIU is at work, or has been
STOPPED = "stopping"  # the daemon's: a signal has come that ends a worker


class Dumping:
    """The dumps of one container, one at a time; `folder` is the container's."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = Lock()
        self._engine: Engine | None = None
        self._unasked = False
        self._stopped = False
        self._over = False

    def begin(self, engine: Engine, *, unasked: bool = False) -> None:
        """Note who does it. Raises Cancelled if it must not be done any longer.

        `unasked`: it is only for the containers to come, which would get the signal that this one
        has got, or what that has left of a worker.
        """
        with self._lock:
            if self._over or (unasked and self._stopped):
                raise Cancelled("the container is over, or has been told to stop")
            unmark(self._folder, BEGUN)
            self._engine, self._unasked = engine, unasked

    def done(self) -> None:
        """Nobody does anything any longer."""
        with self._lock:
            self._engine = None
            unmark(self._folder, BEGUN)

    def stop(self) -> None:
        """The container is told to stop: nobody needs what is `unasked` now."""
        with self._lock:
            self._stopped = True
            try:
                mark(self._folder, STOPPED)
            except OSError as error:
                log.debug("no mark of a stop", folder=self._folder, error=error)
            if self._unasked:
                self._break_off()

    def end(self) -> None:
        """The container is over."""
        with self._lock:
            self._over = True
            self._break_off()

    def _break_off(self) -> None:
        if self._engine is not None and not is_marked(self._folder, BEGUN):
            self._engine.dismiss()


def mark(folder: str, name: str) -> None:
    """Leave a mark. Raises OSError."""
    os.close(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def is_marked(folder: str, name: str) -> bool:
    """Whether there is that mark."""
    return os.path.lexists(f"{folder}/{name}")


def unmark(folder: str, name: str) -> None:
    """Remove a mark, if it is there."""
    try:
        os.unlink(f"{folder}/{name}")
    except FileNotFoundError:
        pass
