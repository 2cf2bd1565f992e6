"""How often something is tried again, and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from shim.errors import RegistryFailed, ThawError
from shim.registry.progress import Halt, Progress
from shim.registry.transport import Interrupted

# Seconds before each new attempt, when none of them brings anything.
WAITS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# How many of them before it is believed that nobody is there: a pod may be waiting for its boot.
_SILENT = 4
# Less is no progress: bytes per second, looked at once in a while (seconds).
SLOWEST = 1024
WINDOW = 60.0
_WORTH_TELLING = 1.0  # seconds of waiting

Result = TypeVar("Result")


class Attempts:
    """The attempts at one thing. What has brought bytes does not count as a failure."""

    def __init__(self, what: str, halt: Halt, progress: Progress) -> None:
        self._what = what
        self._halt = halt
        self._progress = progress
        self._failed = 0
        self._restart()

    def failed(self, error: Interrupted) -> None:
        """Wait before the next attempt. Raises RegistryFailed after the last, and Cancelled."""
        self._halt.check()  # what was aborted has not failed
        if self._failed >= len(WAITS[: _SILENT if error.silent else None]):
            hint = "is that its address?" if error.silent else "what is there is kept"
            raise RegistryFailed(
                f"{self._what}: {error}", hint=f"tried several times; {hint}"
            ) from error
        wait = max(WAITS[self._failed], error.after)
        self._failed += 1
        if wait >= _WORTH_TELLING:
            self._progress.note(f"{self._what}: {error}; again in {wait:.0f} s")
        self._halt.sleep(wait)

    def progressed(self, came: int, new: int) -> None:
        """So many bytes have come, some of them new. Raises Interrupted if too few, Cancelled."""
        self._halt.check()
        self._came += came
        self._new += new
        passed = time.monotonic() - self._since
        if self._new > SLOWEST * passed:
            self._failed = 0
        if passed > WINDOW:
            stalled = self._came < SLOWEST * passed
            self._restart()
            if stalled:
                raise Interrupted(f"less than {SLOWEST} bytes come in a second")

    def _restart(self) -> None:
        self._since, self._came, self._new = time.monotonic(), 0, 0


def failure(error: ThawError | OSError) -> dict[str, str]:
    """What the audit log says of one."""
    if isinstance(error, ThawError):
        return {"outcome": error.reason}
    return {"outcome": "failed", "reason": str(error)}


def persist(what: str, halt: Halt, progress: Progress, do: Callable[[], Result]) -> Result:
    """Do something until it goes well. Raises RegistryFailed if it does not."""
    attempts = Attempts(what, halt, progress)
    while True:
        try:
            halt.check()
            return do()
        except Interrupted as error:
            attempts.failed(error)
