"""A folder that is made anew, whole, in the place of one that is there.

It is written under a name nobody looks for, beside the other, and held by a lock as long as its
maker lives. A maker that was killed leaves its draft; the next one removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from shim.removal import remove_folder


@contextmanager
def replacing(folder: Path, alone: AbstractContextManager[object] | None = None) -> Iterator[Path]:
    """An empty folder to write into; it becomes `folder` at the end, or is removed on any error.

    Who looks meanwhile sees the old one, none for an instant, then the new one. `alone` is entered
    for that instant: it keeps away those who would mind, or raises.
    """
    _sweep(folder)
    draft, lock = _begin(folder)
    try:
        yield draft
        with alone or nullcontext():
            _replace(draft, folder)
    except BaseException:
        remove_folder(str(draft))
        raise
    finally:
        os.close(lock)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _hidden(folder: Path) -> Path:
    return folder.parent / f".{folder.name}-{os.urandom(6).hex()}"


def _begin(folder: Path) -> tuple[Path, int]:
    """A new folder and its lock. A sweeper may come before the lock."""
    while True:
        draft = _hidden(folder)
        draft.mkdir(mode=0o700)
        lock = _lock(draft)
        if lock is not None:
            if draft.exists():
                return draft, lock
            os.close(lock)


def _lock(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _sweep(folder: Path) -> None:
    """Remove the drafts of makers that died: their locks are free."""
    ours = re.compile(rf"\.{re.escape(folder.name)}-[0-9a-f]{{12}}")  # see _hidden
    for path in folder.parent.iterdir():
        if not ours.fullmatch(path.name):
            continue
        lock = _lock(path)
        if lock is not None:
            try:
                remove_folder(str(path))
            except OSError:  # another sweeper was quicker
                pass
            finally:
                os.close(lock)


def _replace(draft: Path, folder: Path) -> None:
    old = _hidden(folder)
    try:
        os.rename(folder, old)
    except FileNotFoundError:
        os.rename(draft, folder)
    else:
        try:
            os.rename(draft, folder)
        except BaseException as error:
            try:
                os.rename(old, folder)
            except OSError as another:  # the first one is the cause: it is raised
                error.add_note(f"what was {folder} is {old} now: {another}")
            raise
        remove_folder(str(old))
    sync(folder.parent)
