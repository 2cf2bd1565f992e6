"""A snapshot that is restored from is neither removed nor replaced under it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from shim.snapshot.store import held


def locked(path: Path, how: int) -> bool:
    """Whether the folder can be locked that way by somebody else."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_others_may_restore_from_it_and_nobody_may_remove_it(tmp_path: Path) -> None:
    with held(tmp_path):
        assert locked(tmp_path, fcntl.LOCK_SH)
        assert not locked(tmp_path, fcntl.LOCK_EX)
    assert locked(tmp_path, fcntl.LOCK_EX)


def test_it_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path):
        raise KeyError
    assert locked(tmp_path, fcntl.LOCK_EX)


@pytest.mark.parametrize("kind", ["nothing", "file", "link"])
def test_what_is_no_folder_is_for_others_to_refuse(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.touch()
    elif kind == "link":
        path.symlink_to(tmp_path)
    with held(path):
        pass
