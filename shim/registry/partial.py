"""A blob that is being fetched: HEX.partial, which becomes HEX once its digest is right.

It is hashed as it comes. Blocks of zeros become holes: a worker's memory has many. The length of
the file says how far it is, so that another process can go on with it; what that one finds is
hashed again first.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from shim.errors import Damaged, RegistryFailed

SUFFIX = ".partial"
_HOLE = 1 << 16  # bytes: of this many zeros nothing is written
_ZEROS = bytes(_HOLE)
_BLOCK = 1 << 20


class Partial:
    """A file of `size` bytes that comes in order, for a blob `digest` in the folder `blobs`."""

    def __init__(self, blobs: Path, digest: str, size: int) -> None:
        self.digest = digest
        self.size = size
        self.position = 0  # bytes that are here
        self._final = blobs / digest.removeprefix("sha256:")
        self._path = self._final.with_name(self._final.name + SUFFIX)
        self._hash = hashlib.sha256()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)

    def resume(self, progress: Callable[[int], None]) -> None:
        """Go on with what an earlier process has left."""
        info = os.fstat(self._fd)
        if not stat.S_ISREG(info.st_mode) or not 0 < info.st_size <= self.size:
            self.restart()
            return
        while block := os.pread(self._fd, _BLOCK, self.position):
            self._hash.update(block)
            self.position += len(block)
            progress(len(block))

    def restart(self) -> None:
        """Forget what is here."""
        os.ftruncate(self._fd, 0)
        self._hash = hashlib.sha256()
        self.position = 0

    def write(self, data: bytes) -> None:
        """What comes next. Raises RegistryFailed if that is more than there should be."""
        if len(data) > self.size - self.position:
            raise RegistryFailed(
                f"blob {self.digest} has more than {self.size} bytes",
                hint="the registry is damaged, or lies",
            )
        self._hash.update(data)
        for first, last in _filled(data, self.position):
            _write(self._fd, memoryview(data)[first:last], self.position + first)
        self.position += len(data)

    def keep(self) -> None:
        """Leave it for another process, with the zeros at its end."""
        os.ftruncate(self._fd, self.position)

    def finish(self) -> None:
        """Give it its name. Raises Damaged if it is not what it should be; then it is gone."""
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self.digest or self.position != self.size:
            self._path.unlink(missing_ok=True)
            raise Damaged(
                f"blob {self.digest} came as {found}", hint="the registry is damaged, or lies"
            )
        os.ftruncate(self._fd, self.size)
        os.fsync(self._fd)  # or a crash could leave its name without its bytes
        os.rename(self._path, self._final)

    def close(self) -> None:
        """Close the file, if it is open."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def copy_of(path: Path, blobs: Path, digest: str, size: int, check: Callable[[], None]) -> bool:
    """Link a blob that another snapshot has, if it is whole: whether it was.

    It is read first: what has been damaged on the disk must not spread.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        info = os.fstat(fd)
        good = stat.S_ISREG(info.st_mode) and info.st_size == size
        if not good or info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
            return False
        if digest_of(fd, check) != digest:
            return False
        os.link(path, blobs / digest.removeprefix("sha256:"), follow_symlinks=False)
        return True
    except FileExistsError:
        return True
    except OSError:
        return False  # it has just been removed, or has too many names
    finally:
        os.close(fd)


def digest_of(fd: int, check: Callable[[], None]) -> str:
    """The digest of a file; `check` is called between its blocks."""
    digest = hashlib.sha256()
    position = 0
    while block := os.pread(fd, _BLOCK, position):
        check()
        digest.update(block)
        position += len(block)
    return f"sha256:{digest.hexdigest()}"


def _filled(data: bytes, position: int) -> list[tuple[int, int]]:
    """Which parts of `data` have to be written: all but blocks of zeros, aligned in the file."""
    found: list[tuple[int, int]] = []
    first = 0
    while first < len(data):
        last = min(len(data), first + _HOLE - (position + first) % _HOLE)
        if not data.startswith(_ZEROS[: last - first], first):
            if found and found[-1][1] == first:
                found[-1] = (found[-1][0], last)
            else:
                found.append((first, last))
        first = last
    return found


def _write(fd: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(fd, data, position)
        data = data[count:]
        position += count
