"""Which error ends in which status."""

from __future__ import annotations

import errno

import pytest

from shim import errors
from shim.cli import exits


def leaves(kind: type[errors.ThawError]) -> list[type[errors.ThawError]]:
    return [kind, *(leaf for sub in kind.__subclasses__() for leaf in leaves(sub))]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.RestoreFailed("x"), exits.FAILED),
        (errors.BadName("x"), exits.USAGE),
        (errors.BadConfiguration("x"), exits.USAGE),
        (errors.NoSuchSnapshot("x"), exits.MISSING),
        (errors.NotFound("x"), exits.MISSING),
        (FileNotFoundError(errno.ENOENT, "x"), exits.MISSING),
        (errors.Damaged("x"), exits.UNFIT),
        (errors.OtherContainer("x"), exits.UNFIT),
        (errors.Denied("x"), exits.DENIED),
        (PermissionError(errno.EPERM, "x"), exits.DENIED),
        (errors.StoreFull("x"), exits.FULL),
        (OSError(errno.ENOSPC, "x"), exits.FULL),
        (OSError(errno.EDQUOT, "x"), exits.FULL),
        (OSError(errno.EIO, "x"), exits.FAILED),
        (errors.AlreadyExists("x"), exits.TAKEN),
        (errors.FailedPrecondition("x"), exits.TAKEN),
        (errors.RegistryFailed("x"), exits.UNREACHABLE),
        (errors.DeadlineExceeded("x"), exits.UNREACHABLE),
        (ValueError("x"), exits.FAILED),
    ],
)
def test_status(error: Exception, status: int) -> None:
    assert exits.status_of(error) == status


def test_no_error_of_ours_ends_well() -> None:
    found = leaves(errors.ThawError)
    assert len(found) > 20
    assert [kind for kind in found if exits.status_of(kind("x")) == exits.OK] == []


def test_every_status_is_in_the_help_and_the_table() -> None:
    for row in exits.TABLE:
        assert f"| {row.status} | {row.sentence} |" in exits.as_markdown()
        assert f"{row.status:>3}  " in exits.as_help()
    assert len({row.status for row in exits.TABLE}) == len(exits.TABLE)
