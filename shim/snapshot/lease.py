"""Who is at it: a file that its holder keeps fresh, so that two do not make one snapshot.

    STORE/leases/NAME      a random token; its time of modification is when it was last renewed

A store may be shared by several nodes over a network file system, so it is not a lock of the
kernel's: whoever has not renewed for `SECONDS` has lost it. Ages are taken by the file system's own
clock, not by the nodes'. A lease saves work; that two makers of one name do not spoil each other's
snapshot is the store's affair (AlreadyExists).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Self

from shim.reference import check_name

SECONDS = 30.0
FOLDER = "leases"


class Lease:
    """Held from `take` to `release`, or until nobody has renewed it for `SECONDS`."""

    def __init__(self, path: Path, token: bytes, seconds: float) -> None:
        self._path = path
        self._token = token
        self._over = threading.Event()
        self._seconds = seconds
        self._renewing = threading.Thread(target=self._renew, daemon=True)
        self._renewing.start()

    @classmethod
    def take(cls, store: Path, name: str, seconds: float = SECONDS) -> Lease | None:
        """The lease on a name; None if somebody has it. Raises OSError in a read-only store."""
        folder = store / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / check_name(name)
        token = os.urandom(16).hex().encode()
        for _ in range(2):
            try:
                _create(path, token)
                return cls(path, token, seconds)
            except FileExistsError:
                if not _remove_stale(path, seconds):
                    return None
        return None

    @property
    def held(self) -> bool:
        """Whether it is still ours: a holder that was stopped for long may have lost it."""
        return _read(self._path) == self._token

    def release(self) -> None:
        """Let others have it; one that was lost is theirs already."""
        self._over.set()
        self._renewing.join()
        if self.held:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _renew(self) -> None:
        while not self._over.wait(self._seconds / 4):
            try:
                if not self.held:
                    return
                os.utime(self._path)
            except OSError:
                continue  # the next time, perhaps


def _create(path: Path, token: bytes) -> None:
    """Under a name of its own first: a lease is never seen without its token."""
    draft = path.with_name(f".{os.urandom(6).hex()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, token)
    finally:
        os.close(fd)
    try:
        os.link(draft, path)
    finally:
        draft.unlink()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _remove_stale(path: Path, seconds: float) -> bool:
    """Remove a lease that nobody renews. False if somebody does, or was quicker than we."""
    token = _read(path)
    if token and _age(path) < seconds:
        return False
    # By rename, so that of several who find it stale only one has it; that it was the stale one
    # and not its successor, the token says.
    grave = path.with_name(f".{os.urandom(6).hex()}")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return True
    taken = _read(grave)
    if taken != token:
        try:
            os.link(grave, path)
        except FileExistsError:
            pass
    grave.unlink(missing_ok=True)
    return taken == token


def _age(path: Path) -> float:
    """Seconds since a file was renewed, by the clock of its file system."""
    probe = path.with_name(f".{os.urandom(6).hex()}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)
