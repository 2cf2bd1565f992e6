"""Locks, events, conditions and threads as in `threading`, on `_thread` alone; and many at once."""

from __future__ import annotations

import time
from _thread import RLock, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType as Lock
    from collections.abc import Callable, Iterable
    from typing import Any, Self, TypeVar

    _T = TypeVar("_T")
else:
    from _thread import allocate_lock as Lock  # noqa: N812

__all__ = ["Condition", "Event", "Lock", "RLock", "at_once", "start"]


def start(function: Callable[[], None]) -> None:
    """Run `function` in a thread of its own, which ends with the process at the latest."""
    start_new_thread(function, ())


def at_once(function: Callable[[Any], _T], items: Iterable[Any], most: int) -> list[_T]:
    """What `function` answers to each item, in their order; up to `most` threads ask it.

    At the first failure no more is begun, and when all have come to their end that of the first
    item is raised that has one. (concurrent.futures does the like, and imports logging: 7 ms of an
    engine's start.)
    """
    waiting, lock = list(items), Lock()
    turns = iter(range(len(waiting)))
    answers: dict[int, _T] = {}
    failures: dict[int, BaseException] = {}

    def work() -> None:
        while not failures:
            with lock:
                number = next(turns, None)
            if number is None:
                return
            try:
                answers[number] = function(waiting[number])
            except BaseException as error:  # noqa: BLE001 - raised where it was asked for
                failures[number] = error

    helpers = [_Helper(work) for _ in range(min(most, len(waiting)) - 1)]
    work()
    for helper in helpers:
        helper.wait()
    if failures:
        raise failures[min(failures)]
    return [answers[number] for number in range(len(waiting))]


class _Helper:
    """Somebody else who does it as well, if there can be another thread."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._done = Event()
        try:
            start(self._run)
        except RuntimeError:
            self._done.set()

    def wait(self) -> None:
        """Until it is done."""
        self._done.wait()

    def _run(self) -> None:
        self._work()
        self._done.set()


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
