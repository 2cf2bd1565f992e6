"""Which processes use CUDA, and doing one thing to all of them at the same time.

Pids are this machine's (of the engine's own pid namespace): those that the driver's calls take.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from shim.errors import GpuFailed
from shim.gpu.driver import Driver


def cuda_processes(driver: Driver, pids: Iterable[int]) -> list[int]:
    """Those of `pids` that the driver knows, sorted. Raises GpuFailed.

    CRIU and nvidia-smi do not know them all: a process that has only called cuInit has no context,
    and a server in front of an engine process is as a rule such a one.
    """
    return [pid for pid in sorted(set(pids)) if driver.state(pid) is not None]


def each(act: Callable[[int], None], pids: Sequence[int]) -> dict[int, GpuFailed]:
    """Do something to every process, to all at the same time; answers what went wrong for whom.

    It is waited for all of them, so that nobody is at work on a process when this returns. The
    driver's calls release the interpreter lock, and each keeps its own process's GPU busy.
    """
    failures: dict[int, GpuFailed] = {}

    def attempt(pid: int) -> None:
        try:
            act(pid)
        except GpuFailed as error:
            failures[pid] = error

    if len(pids) == 1:
        attempt(pids[0])
    elif pids:
        with ThreadPoolExecutor(len(pids)) as pool:
            list(pool.map(attempt, pids))
    return {pid: failures[pid] for pid in sorted(failures)}


def all_of(failures: dict[int, GpuFailed]) -> GpuFailed:
    """One error for several; there is at least one. Each names its process."""
    first = next(iter(failures.values()))
    return GpuFailed("; ".join(e.message for e in failures.values()), hint=first.hint)


class Watch:
    """Processes that are held by descriptor: what has ended is known, whoever gets its pid then."""

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

    def close(self) -> None:
        """Give the descriptors back; `ended` answers from then on as it did last."""
        fds, self._fds = self._fds, {}
        for fd in fds.values():
            os.close(fd)
