"""The daemon's one event loop: epoll, timers and calls from other threads.

Everything that waits without working (connections, container output, child exits, OOM notices)
lives on this loop, so that an idle shim is one thread. Work that blocks (runc, mounts) runs in
threads that come and go with a request and talk back through `call_soon`.
"""

from __future__ import annotations

import heapq
import os
import select
import sys
import time

from shim.lean.queues import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

EPOLLIN = select.EPOLLIN
EPOLLOUT = select.EPOLLOUT
EPOLLHUP = select.EPOLLHUP
EPOLLERR = select.EPOLLERR
EPOLLPRI = select.EPOLLPRI


class Timer:
    """A call in the future that can still be taken back."""

    __slots__ = ("_fn", "when")

    def __init__(self, when: float, fn: Callable[[], None]) -> None:
        self.when = when
        self._fn: Callable[[], None] | None = fn

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        """Never call it; harmless if it has been called already."""
        self._fn = None

    def fire(self) -> None:
        """Call it, unless it was cancelled."""
        fn, self._fn = self._fn, None
        if fn is not None:
            fn()


class Loop:
    """Callbacks for ready descriptors, due timers and other threads' calls, one at a time."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[Timer] = []
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._running = False
        self.on_error: Callable[[BaseException], None] = _raise_to_stderr
        self.watch(self._wake, EPOLLIN, self._drain)

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready_mask)` on the loop thread whenever `fd` is ready."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events on a watched descriptor."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; call this before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_soon(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the loop thread; may be called from any thread."""
        self._calls.append(fn)
        os.eventfd_write(self._wake, 1)

    def call_later(self, seconds: float, fn: Callable[[], None]) -> Timer:
        """Run `fn` on the loop thread after `seconds`; may be called from any thread."""
        timer = Timer(time.monotonic() + seconds, fn)
        self.call_soon(lambda: heapq.heappush(self._timers, timer))
        return timer

    def run(self) -> None:
        """Serve until `stop`. An exception in a callback goes to `on_error`, never further."""
        self._running = True
        while self._running:
            for fd, mask in self._epoll.poll(self._timeout()):
                callback = self._callbacks.get(fd)
                if callback is not None:  # an earlier callback of this round may have dropped it
                    self._guard(lambda cb=callback, m=mask: cb(m))  # type: ignore[misc]
            self._run_due()

    def stop(self) -> None:
        """Make `run` return after the current round."""

        def stop() -> None:
            self._running = False

        self.call_soon(stop)

    def close(self) -> None:
        """Release the loop's own descriptors."""
        self._epoll.close()
        os.close(self._wake)

    def _timeout(self) -> float:
        if self._calls:
            return 0
        if not self._timers:
            return -1
        return max(0.0, self._timers[0].when - time.monotonic())

    def _run_due(self) -> None:
        for _ in range(len(self._calls)):
            self._guard(self._calls.popleft())
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now:
            self._guard(heapq.heappop(self._timers).fire)

    def _guard(self, fn: Callable[[], None]) -> None:
        try:
            fn()
        except Exception as error:  # noqa: BLE001 - one callback must not end the pod's shim
            self.on_error(error)

    def _drain(self, _mask: int) -> None:
        os.eventfd_read(self._wake)


def _raise_to_stderr(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)
