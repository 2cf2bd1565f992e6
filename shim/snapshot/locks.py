"""Locks on the folders of a store, which go with the process that has them.

Some network file systems have none. Nothing is held there then, and nothing is swept.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep a snapshot from being removed while it is restored from.

    Its files are opened one by one, by name and partly by CRIU: all must be of one snapshot. What
    is no folder is held by nobody; opening it says why it is none.
    """
    try:
        fd = open_folder(path)
    except OSError:
        yield
        return
    try:
        flock(fd, fcntl.LOCK_SH)  # waits for one that is about to remove it
        yield
    finally:
        os.close(fd)


def flock(fd: int, how: int) -> None:
    """flock(2), where there is such a thing. Raises BlockingIOError."""
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def open_folder(path: Path) -> int:
    """A descriptor to lock. Raises OSError for a link and for what is no folder."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
