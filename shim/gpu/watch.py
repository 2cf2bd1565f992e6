"""Which processes have ended. They are held by descriptor: a pid may have become another's."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Self


class Watch:
    """Processes, from when it was made on. Raises OSError for what is the pid of a thread only."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._fds: dict[int, int] = {}
        self._gone: set[int] = set()
        for pid in pids:
            try:
                self._fds[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                self._gone.add(pid)
            except OSError:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ended(self) -> set[int]:
        """Those that have ended by now, zombies too."""
        poll = select.poll()
        for fd in self._fds.values():
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(0)}
        self._gone |= {pid for pid, fd in self._fds.items() if fd in ready}
        return set(self._gone)

    def wait(self, pids: Iterable[int], seconds: float) -> None:
        """Return once these have ended, or the time is over."""
        end = time.monotonic() + seconds
        for pid in set(pids) & self._fds.keys():
            poll = select.poll()
            poll.register(self._fds[pid], select.POLLIN)
            poll.poll(max(0.0, end - time.monotonic()) * 1000)

    def kill(self, pid: int) -> None:
        """End one of them, unless it has."""
        if pid in self._fds:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fds[pid], signal.SIGKILL)

    def close(self) -> None:
        """Give the descriptors back; `ended` answers from then on as it did last."""
        fds, self._fds = self._fds, {}
        for fd in fds.values():
            os.close(fd)
