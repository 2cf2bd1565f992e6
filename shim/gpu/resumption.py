"""Giving restored processes their GPU state back: all are restored before the first is unlocked.

A process that CRIU has restored runs, but for its CUDA calls: they wait for the unlock. So nothing
of a restore is to be seen before every process of the worker has all that it had; one that went on
earlier would find its peers, with which it shares work on GPUs, unable to answer.

Nothing is tried twice: a process whose restore has failed can only be ended (see Driver.restore),
as the undoing of the whole restore does. It also ends those for which the driver hangs, when the
restore's time is over: the engine is killed, and with it the thread that waits in the driver.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from shim.errors import GpuFailed
from shim.gpu.driver import Driver
from shim.gpu.processes import all_of, each, ended_over_it
from shim.gpu.watch import Watch
from shim.timeline import Timeline

_KILLED = "has it been killed, or is a memory limit reached? Its pod's events may tell"


class Resumption:
    """One restore's calls of the driver. What takes long, cuInit, is begun early by `prepare`."""

    def __init__(self, open_driver: Callable[[], Driver] = Driver.open) -> None:
        self.timeline = Timeline()
        self._open = open_driver
        self._driver: Driver | None = None
        self._failure: BaseException | None = None
        self._opened = threading.Event()
        self._thread: threading.Thread | None = None

    def prepare(self, after: Callable[[], object] = lambda: None) -> None:
        """Load the driver and have it initialized in a thread, unless that has begun.

        It is initialized when `after` has returned.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._begin, args=(after,), daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Wait until the driver is loaded. Raises Unfit if there is none that can restore."""
        self.prepare()
        self._opened.wait()
        if self._driver is None:
            assert self._failure is not None
            raise self._failure

    def resume(self, pids: Sequence[int], pairs: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Restore all, then unlock all. `pairs`: old and new UUID of every GPU, if one differs.

        Raises GpuFailed naming the processes; nothing was unlocked if one was not restored.
        """
        driver = self._ready()
        with Watch(pids) as watch:
            with self.timeline.span("restore"):
                _do(driver, lambda pid: driver.restore(pid, pairs), pids, watch)
            with self.timeline.span("unlock"):
                _do(driver, driver.unlock, pids, watch)

    def _ready(self) -> Driver:
        """The driver, once it is initialized."""
        self.check()
        assert self._thread is not None
        with self.timeline.span("init"):
            self._thread.join()
        if self._failure is not None:
            raise self._failure
        assert self._driver is not None
        return self._driver

    def _begin(self, after: Callable[[], object]) -> None:
        try:
            self._driver = self._open()
            self._opened.set()
            after()
            self._driver.init()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._failure = error
        finally:
            self._opened.set()


def _do(driver: Driver, act: Callable[[int], None], pids: Sequence[int], watch: Watch) -> None:
    failures = each(act, pids)
    ended = sorted(ended_over_it(driver, failures, watch))
    if ended:
        words = ", ".join(map(str, ended))
        told = f": {all_of(failures).message}" if failures else ""
        raise GpuFailed(f"process {words} ended before it ran on{told}", hint=_KILLED)
    if failures:
        raise all_of(failures)
