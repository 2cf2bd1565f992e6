"""The exit statuses of `thaw`: one table for the code, the help text and the README."""

from __future__ import annotations

import errno
from typing import NamedTuple

from shim.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Denied,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StoreFull,
    ThawError,
    Unavailable,
    Unfit,
)

OK = 0
FAILED = 1
USAGE = 2  # argparse's own
MISSING = 3
UNFIT = 4
DENIED = 5
FULL = 6
TAKEN = 7
UNREACHABLE = 8
INTERRUPTED = 130  # as shells report SIGINT
NO_READER = 141  # as shells report SIGPIPE


class Exit(NamedTuple):
    """A status, and the errors that end in it: the nearest class of an error counts."""

    status: int
    sentence: str
    errors: tuple[type[Exception], ...] = ()


TABLE = (
    Exit(OK, "Done; of `fit`, `verify` and `doctor`: the answer is yes."),
    Exit(FAILED, "It did not work; the message says why.", (ThawError, OSError)),
    Exit(USAGE, "Wrong arguments, a bad name or a bad configuration.", (InvalidArgument,)),
    Exit(MISSING, "No such snapshot, container or file.", (NotFound, FileNotFoundError)),
    Exit(UNFIT, "The snapshot is damaged or does not fit; the answer is no.", (Unfit,)),
    Exit(
        DENIED,
        "The operator's policy, or the system, does not allow it.",
        (Denied, PermissionError),
    ),
    Exit(FULL, "There is no room for it.", (StoreFull,)),
    Exit(TAKEN, "The name is taken, or the snapshot in use.", (AlreadyExists, FailedPrecondition)),
    Exit(
        UNREACHABLE,
        "A registry, the container's shim or the cache did not answer, or not in time.",
        (Unavailable, DeadlineExceeded),
    ),
    Exit(INTERRUPTED, "Interrupted from the keyboard."),
    Exit(NO_READER, "Whoever read the output has gone."),
)
_STATUS = {kind: row.status for row in TABLE for kind in row.errors}


def status_of(error: Exception) -> int:
    """The exit status for an error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FULL
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), FAILED)


def as_markdown() -> str:
    """The README's table."""
    rows = [f"| {row.status} | {row.sentence} |" for row in TABLE]
    return "\n".join(["| status | meaning |", "|--:|---|", *rows])


def as_help() -> str:
    """The end of `thaw --help`."""
    rows = [f"  {row.status:>3}  {row.sentence.replace('`', '')}" for row in TABLE]
    return "\n".join(["exit status:", *rows])
