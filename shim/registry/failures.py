"""The memory of pulls for pods that have failed.

A pod that crashes in a loop asks for the same damaged artifact with each of its starts. So the
failure is noted in a folder as other remains of pulls, one for the reference or, once it is known,
for the artifact in its repository. Until a pause is over, which grows with each failure, the next
such pull is refused with the same words. An operator's pull is not, and clears the note.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from shim.errors import (
    Cancelled,
    Damaged,
    FailedPrecondition,
    NoSuchSnapshot,
    RegistryFailed,
    StoreFull,
    ThawError,
    Unavailable,
    Unfit,
)
from shim.registry.remains import PULL

FIRST = 60.0  # seconds of the first pause; each is twice the one before
LONGEST = 3600.0
_RECENT = 86400.0  # seconds after which counting begins anew
_LARGEST = 1 << 16  # bytes of a note
_FILE = "failed.json"
_KINDS = {kind.reason: kind for kind in (Damaged, FailedPrecondition, StoreFull, Unfit)}
# These bring nothing much, or nothing that would be the same at the next start.
_FORGIVEN = (Cancelled, NoSuchSnapshot)


@dataclass(frozen=True)
class Failure:
    """One that was noted: how many in a row, when (Unix time), the pause, and what it was."""

    count: int
    time: float
    pause: float
    reason: str
    message: str

    @property
    def left(self) -> float:
        """How many seconds of the pause are left; none if the clock was set back."""
        left = self.time + self.pause - time.time()
        return left if 0 < left <= self.pause else 0.0


class Notes:
    """What is known of the failures of one thing, "REGISTRY/REPOSITORY:TAG" or "…@sha256:…"."""

    def __init__(self, store: Path, what: str) -> None:
        self._what = what
        self._refused = False
        self._folder = store / f"{PULL}{hashlib.sha256(what.encode()).hexdigest()}"

    def refuse(self) -> None:
        """Raise the last failure again if its pause is not over."""
        last = self._last()
        if last and last.left:
            kind = _KINDS.get(last.reason, RegistryFailed)
            self._refused = True
            raise kind(
                f"{last.message}; {self._what} is not tried again for {last.left:.0f} s",
                hint=f"after {last.count} failures; `thaw pull {self._what}` tries at once",
            )

    def add(self, error: ThawError) -> None:
        """Note a failure, as far as the disk lets us; that it was refused is no new one."""
        if self._refused or isinstance(error, _FORGIVEN):
            return
        last = self._last()
        recent = last is not None and 0 <= time.time() - last.time < _RECENT
        count = last.count + 1 if last and recent else 1
        # Who could not be reached may be there in a moment, and was not asked for much.
        longest = FIRST if isinstance(error, Unavailable) else LONGEST
        pause = min(FIRST * 2.0 ** min(count - 1, 10), longest)
        found = Failure(count, time.time(), pause, error.reason, error.message[:1000])
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            fresh = self._folder / f"{_FILE}.{os.getpid()}"
            fresh.write_text(json.dumps(asdict(found)))
            fresh.rename(self._folder / _FILE)
        except OSError:
            pass  # then the next start has to find out for itself

    def clear(self) -> None:
        """Forget it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _last(self) -> Failure | None:
        try:
            with open(self._folder / _FILE, "rb") as file:
                found = json.loads(file.read(_LARGEST))
            return Failure(
                int(found["count"]),
                float(found["time"]),
                min(float(found["pause"]), LONGEST),
                str(found["reason"]),
                str(found["message"]),
            )
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None  # none, or the machine went down while it was written
