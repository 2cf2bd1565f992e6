"""Doing something in another process's namespace, from a thread of its own: the others stay."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

# linux/sched.h
CLONE = {"net": 0x40000000, "uts": 0x04000000, "ipc": 0x08000000, "mnt": 0x00020000}
_CLONE_FS = 0x00000200

T = TypeVar("T")


def inside(namespace: str, kind: str, function: Callable[[], T]) -> T:
    """What `function` returns (or raises) when it is called in the namespace at a path.

    A socket that is made in a "net" stays of that one. In a "mnt" all paths are that one's, those
    of Python's own modules, too. Raises OSError naming the path if it cannot be joined.
    """

    def enter() -> T:
        join(namespace, kind)
        return function()

    return in_thread(enter)


def in_thread(function: Callable[[], T]) -> T:
    """What `function` returns, or raises, in a thread whose namespaces end with it."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error
    return results[0]


def is_own(namespace: str, kind: str) -> bool:
    """Whether the path leads to the namespace that this process began in: as a rule, the host's.

    So does the path that CRI gives the containers of a pod on the host's network. One that leads
    nowhere is not ours.
    """
    try:
        return os.path.samestat(os.stat(namespace), os.stat(f"/proc/self/ns/{kind}"))
    except OSError:
        return False


def unshare(kind: str) -> None:
    """Give this thread, and what it makes, a new namespace; "mnt" is possible, too. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE[kind]):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")


def join(namespace: str, kind: str) -> None:
    """Enter the namespace at a path, with this thread. Raises OSError naming the path."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if kind == "mnt":
            libc.unshare(_CLONE_FS)  # or the other threads would go along, which is refused
        if libc.setns(fd, CLONE[kind]):
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {os.strerror(number)}", namespace)
    finally:
        os.close(fd)
