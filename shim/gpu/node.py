"""The GPUs of this node during one restore: NVML is asked ahead of need, and little.

The first question costs the most. Every other one takes a dozen calls, each of which waits for the
driver, and that is busy with our own context and memory meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from shim.gpu import nvml
from shim.gpu.nvml import Gpu

_FRESH = 10.0  # seconds: what somebody does to a GPU's mode takes longer to be made use of


class Node:
    """What NVML says of them. Nothing is asked before `begin`, or the first question."""

    def __init__(self, ask: Callable[[], Sequence[Gpu]] = nvml.gpus) -> None:
        self._ask = ask
        self._lock = threading.Lock()  # of what follows
        self._thread: threading.Thread | None = None
        self._gpus: Sequence[Gpu] = ()
        self._when = 0.0
        self._failure: BaseException | None = None

    def begin(self) -> None:
        """Ask in a thread, unless that has begun."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, daemon=True)
                self._thread.start()

    def settle(self) -> None:
        """Wait until NVML has answered what `begin` has asked, or cannot."""
        self.begin()
        assert self._thread is not None
        self._thread.join()

    def gpus(self) -> Sequence[Gpu]:
        """All of them, as they were a moment ago. Raises Unfit if NVML cannot tell."""
        self.settle()
        with self._lock:
            if self._failure is not None or time.monotonic() - self._when > _FRESH:
                self._look()
            if self._failure is not None:
                raise self._failure
            return self._gpus

    def now(self) -> Sequence[Gpu]:
        """The same with the memory that is free now; without those that are gone."""
        return nvml.refreshed(self.gpus())

    def anew(self) -> Sequence[Gpu]:
        """As they are now, with who uses them. Raises Unfit."""
        return self._ask()

    def _look(self) -> None:
        try:
            self._gpus, self._failure = self._ask(), None
        except BaseException as error:  # noqa: BLE001 - raised where the answer is wanted
            self._failure = error
        self._when = time.monotonic()
