"""What pulls leave in a store: a folder for each, held by a lock as long as its process lives.

STORE/.pull-HEX/lock                what is locked: a folder's locks do not leave an NFS client
…/blobs/sha256/HEX                  a blob of the artifact with the manifest HEX, whole
…/HEX.partial                       one that is under way
…/failed.json                       why a pull for a pod has failed: see failures.py
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shim.removal import remove_folder
from shim.snapshot.locks import LOCK, claim, seized

PULL = ".pull-"
KEPT_SECONDS = 7 * 86400.0


@contextmanager
def held(folder: Path, wait: Callable[[], None]) -> Iterator[bool]:
    """Hold a folder, `wait` being called until it is free: whether it is still there then."""
    try:
        lock = _claimed(folder, wait)
    except FileNotFoundError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(lock)


def discard(folder: Path) -> None:
    """Remove a folder that is held, all at once: nobody may hold what is left meanwhile."""
    gone = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    os.rename(folder, gone)
    remove_folder(str(gone))


def forgotten(store: Path, seconds: float = KEPT_SECONDS) -> list[Path]:
    """What forget() would remove now; looks only."""
    now = time.time()
    return sorted(path for path in store.glob(f"{PULL}*") if now - _changed(path) >= seconds)


def forget(store: Path, seconds: float = KEPT_SECONDS) -> list[Path]:
    """Remove what pulls into a store have left that nobody went on with for so long."""
    return [path for path in forgotten(store, seconds) if _forget(path, seconds)]


def _forget(path: Path, seconds: float) -> bool:
    try:
        with seized(path):
            # Somebody may have gone on with it, and stopped, since it was looked at.
            if _contents(path) and time.time() - _changed(path) < seconds:
                return False
            discard(path)
            return True
    except OSError:  # it is under way, or gone
        return False


def _claimed(folder: Path, wait: Callable[[], None]) -> int:
    while True:
        try:
            return claim(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()


def _changed(folder: Path) -> float:
    """When something in `folder` was written last, as Unix time; now if it is just going."""
    found = _contents(folder)
    try:
        return max(found) if found else os.lstat(folder).st_mtime
    except FileNotFoundError:
        return time.time()


def _contents(folder: Path) -> list[float]:
    """When each file below `folder` was written last."""
    found = []
    for path in folder.rglob("*"):
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(info.st_mode) and path != folder / LOCK:
            found.append(info.st_mtime)
    return found
