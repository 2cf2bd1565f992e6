"""Ends for what a socket's own time limit does not end: an answer that comes byte by byte."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watch:
    """Ends what takes too long, in a thread of its own; that is there while there is something."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ends: dict[Deadline, float] = {}
        self._next = 0.0  # when the thread looks again; 0.0: there is none

    def add(self, deadline: Deadline, end: float) -> None:
        """End it at `end`, of time.monotonic()."""
        with self._changed:
            self._ends[deadline] = end
            if not self._next:
                threading.Thread(target=self._run, name="deadlines", daemon=True).start()
            if not self._next or end < self._next:
                self._next = end
                self._changed.notify()

    def remove(self, deadline: Deadline) -> None:
        """It has come to its end by itself."""
        with self._changed:
            self._ends.pop(deadline, None)

    def stop(self) -> None:
        """Let the thread end now."""
        with self._changed:
            self._ends.clear()
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while self._ends:
                now = time.monotonic()
                for deadline in [one for one, end in self._ends.items() if end <= now]:
                    del self._ends[deadline]
                    deadline.miss()
                self._next = min(self._ends.values(), default=now)
                self._changed.wait(self._next - now)
            self._next = 0.0


class Deadline:
    """When waits for one thing have to be over; `end` ends them."""

    def __init__(self, watch: Watch, end: Callable[[], object]) -> None:
        self._watch = watch
        self._end = end
        self._missed = False

    def miss(self) -> None:
        """It is too late: called by the watch."""
        self._missed = True
        self._end()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Raise TimeoutError if what is done here takes longer."""
        self._watch.add(self, time.monotonic() + seconds)
        try:
            yield
        except Exception:
            if not self._missed:
                raise
        finally:
            self._watch.remove(self)
        # What was ended may look as if it had come to its own end.
        if self._missed:
            raise TimeoutError(f"timed out: not whole after {seconds:g} s") from None
