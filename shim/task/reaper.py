"""The one owner of waitpid(-1): nobody else in the daemon may wait for a child.

A container's init becomes our child only when `runc create` exits (we are its subreaper), and it
may die before we have read its pid. So exits of pids that nobody knows yet are kept while an
`early()` scope is open, and handed over when the pid is claimed.
"""

from __future__ import annotations

import os
import time

from shim.lean import signals
from shim.lean.threads import Event, Lock
from shim.loop import EPOLLIN, Loop
from shim.spawn import Capture, Completed, exit_status, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType


class Exit:
    """How and when a process ended: exit status (128 + signal), nanoseconds since the epoch."""

    __slots__ = ("at", "status")

    def __init__(self, status: int, at: int) -> None:
        self.status = status
        self.at = at


class Reaper:
    """Child exits, delivered once each, on the loop thread."""

    def __init__(self, loop: Loop) -> None:
        self._lock = Lock()
        self._claims: dict[int, Callable[[Exit], None]] = {}
        self._early: dict[int, Exit] = {}
        self._scopes = 0
        self._loop = loop
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._read = read
        # The C-level handler writes to this pipe at once, whichever thread is running Python code.
        signals.set_wakeup_fd(write, warn_on_full_buffer=False)
        signals.signal(signals.SIGCHLD, lambda *_: None)
        loop.watch(read, EPOLLIN, self._woken)
        loop.call_soon(self.reap)  # children that ended before the handler was there

    def early(self) -> EarlyExits:
        """A scope in which exits of unknown pids are kept for a later `claim`."""
        return EarlyExits(self)

    def claim(self, pid: int, callback: Callable[[Exit], None]) -> None:
        """Call `callback(exit)` once, on the loop thread, when `pid` ends or if it has ended."""
        with self._lock:
            exit = self._early.pop(pid, None)
            if exit is None:
                self._claims[pid] = callback
                return
        self._deliver(callback, exit)

    def kill(self, pid: int, signum: int, *, group: bool = False) -> bool:
        """Signal a child (or the group it leads) that has not been reaped.

        Its pid cannot belong to someone else yet; False if it has been reaped.
        """
        with self._lock:
            if pid not in self._claims:
                return False
            try:
                (os.killpg if group else os.kill)(pid, signum)
            except ProcessLookupError:
                return False
            return True

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        fds: Mapping[int, int],
        ended: Callable[[Exit], None],
        *,
        group: bool = False,
    ) -> int:
        """Start a program of ours; `ended` is called on the loop thread. Returns its pid."""
        with self.early():
            pid = spawn(argv, env, fds, group=group)
            self.claim(pid, ended)
        return pid

    def run(
        self, argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int] | None = None
    ) -> Completed:
        """Start a program and wait for it, from any thread but the loop's."""
        done = Event()
        exits: list[Exit] = []

        def ended(exit: Exit) -> None:
            exits.append(exit)
            done.set()

        with Capture() as capture:
            self.start(argv, env, fds if fds is not None else capture.fds, ended)
            done.wait()
            return Completed(argv, exits[0].status, capture.read())

    def reap(self) -> None:
        """Collect every child that has ended."""
        while True:
            try:
                with self._lock:
                    # Under the lock, so that `kill` never signals a recycled pid.
                    pid, status = os.waitpid(-1, os.WNOHANG)
                    if pid == 0:
                        return
                    exit = Exit(exit_status(status), time.time_ns())
                    callback = self._claims.pop(pid, None)
                    if callback is None and self._scopes:
                        self._early[pid] = exit
            except ChildProcessError:
                return
            if callback is not None:
                self._deliver(callback, exit)

    def _deliver(self, callback: Callable[[Exit], None], exit: Exit) -> None:
        # Each on its own: a callback that fails must not keep the next child from being reaped.
        self._loop.call_soon(lambda: callback(exit))

    def _woken(self, _mask: int) -> None:
        try:
            while len(os.read(self._read, 512)) == 512:
                pass
        except BlockingIOError:
            pass
        self.reap()

    def _enter(self) -> None:
        with self._lock:
            self._scopes += 1

    def _leave(self) -> None:
        with self._lock:
            self._scopes -= 1
            if self._scopes == 0:
                self._early.clear()


class EarlyExits:
    """See `Reaper.early`; nests and may be held by several threads at once."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper

    def __enter__(self) -> None:
        self._reaper._enter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reaper._leave()
