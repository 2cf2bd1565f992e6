"""What is told of a transfer while it lasts."""

from __future__ import annotations

import threading

from shim.errors import Cancelled


class Progress:
    """Told of a transfer, by several threads at once; this one keeps it to itself."""

    def begin(self, what: str, total: int) -> None:
        """A stage begins, of so many bytes; the one before has ended."""

    def advance(self, count: int) -> None:
        """So many more bytes are there; fewer than none if some have to be fetched again."""

    def note(self, sentence: str) -> None:
        """Something that a reader should know of: another attempt, somebody else's pull."""


class Halt:
    """Why transfers shall stop: one of them failed, or the caller wants no more."""

    def __init__(self, cancelled: threading.Event | None = None) -> None:
        self._event = threading.Event()
        self._cancelled = cancelled or self._event

    def set(self) -> None:
        """Stop all of them."""
        self._event.set()

    def check(self) -> None:
        """Raise Cancelled if there shall be no more."""
        if self._event.is_set() or self._cancelled.is_set():
            raise Cancelled("the transfer was cancelled")

    def sleep(self, seconds: float) -> None:
        """Wait, unless there shall be no more. Raises Cancelled."""
        while seconds > 0:
            self.check()
            step = min(seconds, 0.1)
            self._event.wait(step)
            seconds -= step
        self.check()
