"""Writing to a store: what the disk's refusals mean to whoever asked."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shim.errors import CheckpointFailed, FailedPrecondition, StoreFull

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What fails inside because `folder` is full, or is not ours to write, says so.

    Raises StoreFull and FailedPrecondition in the place of such an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_room(folder) from error
        if error.errno in _REFUSED:
            raise FailedPrecondition(
                f"cannot write to {folder}: {error.strerror}",
                hint="snapshots can only be read from there; new ones go to the first store",
            ) from error
        raise


def no_room(folder: Path, cause: str = "") -> StoreFull:
    """The error that says that `folder` is full, and what has come of it."""
    return StoreFull(
        f"there is no room left in {folder}{': ' if cause else ''}{cause}",
        hint="`thaw gc` and `thaw rm` remove snapshots; see `thaw ls`",
    )


def is_full(error: BaseException) -> bool:
    """Whether a full disk (or quota) is the cause of an error.

    Of a checkpoint's, what a program said of it counts too; anybody else's words may be a remote
    machine's, about its own disk.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        if isinstance(cause, CheckpointFailed) and any(
            os.strerror(number) in str(cause) for number in _FULL
        ):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
