"""Locks, events, conditions and threads as in `threading`, on `_thread` alone."""

from __future__ import annotations

import time
from _thread import RLock, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType as Lock
    from collections.abc import Callable
    from typing import Self
else:
    from _thread import allocate_lock as Lock  # noqa: N812

__all__ = ["Condition", "Event", "Lock", "RLock", "start"]


def start(function: Callable[[], None]) -> None:
    """Run `function` in a thread of its own, which ends with the process at the latest."""
    start_new_thread(function, ())


class Condition:
    """A lock and a queue of threads that wait for it to be worth taking."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiters: list[Lock] = []

        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, seconds: float | None = None) -> bool:
        """Give the lock up until notified; False if `seconds` passed first."""
        waiter = Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        self._lock.release()
        try:
            notified = waiter.acquire(True, -1 if seconds is None else max(0.0, seconds))
        finally:
            self._lock.acquire()
        if not notified and waiter in self._waiters:
            self._waiters.remove(waiter)
        return notified

    def wait_for(self, predicate: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until `predicate()`, at most `seconds`; its last value."""
        end = None if seconds is None else time.monotonic() + seconds
        while not predicate():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return predicate()
            self.wait(left)
        return True

    def notify_all(self) -> None:
        """Wake every thread that waits."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.release()


class Event:
    """A flag that threads can wait for."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._set = False

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def set(self) -> None:
        """Set it and wake everyone who waits."""
        with self._condition:
            self._set = True
            self._condition.notify_all()

    def clear(self) -> None:
        """Take it back."""
        with self._condition:
            self._set = False

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, at most `seconds`; whether it is."""
        with self._condition:
            return self._condition.wait_for(lambda: self._set, seconds)
