"""Waiting for what is bound to happen, on a machine that may have other things to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

PATIENCE = 30.0  # seconds after which something that was awaited will not come any more


def eventually(what: Callable[[], object]) -> None:
    """Return as soon as it is so; fail if it does not become so."""
    ends = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.005)


def own_threads() -> set[str]:
    """This process's threads, as the kernel lists them.

    One that has been joined stays there for a moment: the kernel wakes whoever joins it first. And
    one of an earlier test may end at any time. So it is only of use to look which ones are new, and
    `eventually` none is.
    """
    return set(os.listdir("/proc/self/task"))


def alive(pid: int) -> bool:
    """Whether there is such a process, and no zombie."""
    return _state(pid) not in "ZX"


def asleep(pid: int) -> bool:
    """Whether it waits for something: the first thread of such a process."""
    return _state(pid) == "S"


def _state(pid: int) -> str:
    """The kernel's letter for it: proc(5). X, which is "dead", if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it may end between the two calls
        return "X"
