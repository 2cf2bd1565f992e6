"""shim._native for Python: results become values or OSError, paths become bytes.

Only what several rooms need stands here; a call that one module makes (mounts, inotify) is made
there, through `check`. Also where the native programs lie that CRIU and the engine run, and what
else is neither Python nor linked to it.
"""

from __future__ import annotations

import os

from shim import _native
from shim._native import lib

# Beside the extension, not beside this file: an editable install keeps the two apart.
LIBEXEC = os.path.join(os.path.dirname(_native.__file__), "libexec")
HOOK = os.path.join(LIBEXEC, "thaw-criu-hook")
KEEPER = os.path.join(LIBEXEC, "thaw-gpu-keeper")


def check(result: int, what: str = "", path: str = "") -> int:
    """The result of a native call; for -errno OSError, saying `what` failed on which path."""
    if result >= 0:
        return result
    reason = os.strerror(-result)
    raise OSError(-result, f"{what}: {reason}" if what else reason, path or None)


def set_subreaper() -> None:
    """Orphans among this process's descendants become its children."""
    check(lib.thaw_set_subreaper(1), "cannot become a subreaper")


def create_core_cookie(pid: int = 0) -> None:
    """Give a process (0: this one) a core scheduling cookie of its own.

    Raises OSError with EINVAL where the kernel has no core scheduling, ENODEV without SMT.
    """
    check(lib.thaw_sched_core_create(pid), f"cannot create a core scheduling cookie for {pid}")


def join_core_cookie(pid: int) -> None:
    """Take the core scheduling cookie of `pid` for the calling thread."""
    check(lib.thaw_sched_core_join(pid), f"cannot take the core scheduling cookie of {pid}")
