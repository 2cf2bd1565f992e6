from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shim.errors import (
    CheckpointFailed,
    FailedPrecondition,
    RegistryFailed,
    StoreFull,
    ThawError,
)
from shim.snapshot.writing import is_full, no_room, writing


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, StoreFull, "no room left in /s"),
        (errno.EDQUOT, StoreFull, "no room left in /s"),
        (errno.EROFS, FailedPrecondition, "cannot write to /s: Read-only file system"),
        (errno.EACCES, FailedPrecondition, "cannot write to /s: Permission denied"),
        (errno.EPERM, FailedPrecondition, "cannot write to /s"),
    ],
)
def test_what_the_disk_refuses(number: int, kind: type[ThawError], words: str) -> None:
    with pytest.raises(kind, match=words) as refused, writing(Path("/s")):
        raise OSError(number, os.strerror(number), "/s/x")
    assert refused.value.hint


def test_other_errors_are_themselves() -> None:
    with pytest.raises(OSError, match="broken") as caught, writing(Path("/s")):
        raise OSError(errno.EIO, "broken")
    assert caught.value.errno == errno.EIO
    with writing(Path("/s")):
        pass


def test_a_full_disk_as_a_cause() -> None:
    full = OSError(errno.ENOSPC, "somewhere")
    outer = CheckpointFailed("cannot save")
    outer.__cause__ = full
    assert is_full(full)
    assert is_full(outer)
    assert is_full(CheckpointFailed("tar: x: No space left on device"))
    assert is_full(CheckpointFailed("tar: x: Disk quota exceeded"))
    assert not is_full(CheckpointFailed("tar: x: Input/output error"))
    assert not is_full(OSError(errno.EIO, "x"))


def test_what_a_registry_says_of_its_own_disk() -> None:
    answer = RegistryFailed("blob x: the registry answers 500 (No space left on device)")
    assert not is_full(answer)
    answer.__cause__ = OSError(errno.ECONNRESET, "No space left on device")
    assert not is_full(answer)
    answer.__cause__ = OSError(errno.ENOSPC, "x")
    assert is_full(answer)


def test_what_came_of_it() -> None:
    assert no_room(Path("/s")).message == "there is no room left in /s"
    assert no_room(Path("/s"), "it failed").message == "there is no room left in /s: it failed"
