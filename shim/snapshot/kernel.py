"""What of this machine's kernel a dumped process may depend on: one table of probes.

Nothing here goes by versions: distributions bring features back, and leave others out.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

# asm/unistd.h
_RSEQ = {"x86_64": 334, "aarch64": 293}


def _path(path: str) -> Callable[[], bool]:
    return lambda: os.path.exists(path)


def _has_rseq() -> bool:
    """glibc registers every thread, and CRIU registers it again (criu/pie/restorer.c)."""
    number = _RSEQ.get(os.uname().machine)
    if number is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    # Nothing is registered at no address: EINVAL, or ENOSYS.
    return bool(libc.syscall(number, 0, 0, 0, 0) < 0 and ctypes.get_errno() != errno.ENOSYS)


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _has_memfd() -> bool:
    try:
        os.close(os.memfd_create("thaw"))
    except OSError:
        return False
    return True


PROBES: dict[str, Callable[[], bool]] = {
    "hugetlb": _path("/sys/kernel/mm/hugepages"),
    "inotify": _path("/proc/sys/fs/inotify"),
    "ipv6": _path("/proc/net/if_inet6"),
    "memfd": _has_memfd,
    "mqueue": _path("/proc/sys/fs/mqueue"),
    "pidfd": _has_pidfd,
    "rseq": _has_rseq,
    "seccomp": _path("/proc/sys/kernel/seccomp/actions_avail"),
    "sysvipc": _path("/proc/sysvipc/shm"),
    "time-namespace": _path("/proc/self/ns/time"),
    "transparent-hugepage": _path("/sys/kernel/mm/transparent_hugepage"),
}


def kernel_features() -> list[str]:
    """Those of the table that this kernel has, sorted."""
    return sorted(name for name, probe in PROBES.items() if probe())
