"""Segments: files of huge pages that are mapped for as long as they live, and what of them is free.

All pages of a segment are there from the beginning: it is pinned as a whole, and whoever writes to
a mapping of a full tmpfs gets a signal instead of an error.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

GRAIN = 4096  # bytes: places and lengths are multiples of it, as direct I/O needs
SEGMENT = 1 << 30  # bytes: few calls of the driver for all, and each is made quickly


class Free:
    """Which stretches of a length of bytes are free; the first one that is long enough is taken."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = size  # bytes that are free
        self._starts = [0]
        self._ends = [size]

    @property
    def whole(self) -> bool:
        """Whether nothing is taken."""
        return self.left == self.size

    def take(self, length: int) -> int | None:
        """Where so many bytes were free, and are no longer; None if they are nowhere together."""
        if length > self.left:
            return None
        for number, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if end - start >= length:
                self._cut(number, start, start + length)
                return start
        return None

    def claim(self, start: int, length: int) -> None:
        """Take these very bytes. Raises ValueError if they are not free."""
        number = bisect_left(self._starts, start + 1) - 1
        if length <= 0 or number < 0 or start + length > self._ends[number]:
            raise ValueError(f"{length} bytes at {start} are not free")
        self._cut(number, start, start + length)

    def give(self, start: int, length: int) -> None:
        """Bytes that were taken are free again."""
        number = bisect_left(self._starts, start)
        end = start + length
        self.left += length
        joins_next = number < len(self._starts) and self._starts[number] == end
        if number and self._ends[number - 1] == start:
            self._ends[number - 1] = end
            if joins_next:
                self._ends[number - 1] = self._ends.pop(number)
                del self._starts[number]
        elif joins_next:
            self._starts[number] = start
        else:
            self._starts.insert(number, start)
            self._ends.insert(number, end)

    def _cut(self, number: int, start: int, end: int) -> None:
        """Take from one of the stretches."""
        first, last = self._starts[number], self._ends[number]
        kept = [(a, b) for a, b in ((first, start), (end, last)) if a < b]
        self._starts[number : number + 1] = [a for a, _ in kept]
        self._ends[number : number + 1] = [b for _, b in kept]
        self.left -= end - start


class Segment:
    """One file, mapped. `pinned`: the driver has it, and `unpin` takes it back."""

    def __init__(self, path: Path, number: int, fd: int) -> None:
        self.path = path
        self.number = number
        self.size = os.fstat(fd).st_size
        self.free = Free(self.size)
        self.unpin: Callable[[], None] | None = None
        self._map = mmap.mmap(fd, self.size, mmap.MAP_SHARED)
        with suppress(OSError, AttributeError):  # where the mount does not give them anyway
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.memory = memoryview(self._map)

    @classmethod
    def make(cls, path: Path, number: int, size: int) -> Segment:
        """A new one. Raises OSError, ENOSPC if there is no memory for it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            return cls(path, number, fd)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(fd)

    @classmethod
    def open(cls, path: Path, number: int) -> Segment:
        """One that is there. Raises OSError, and ValueError if it is none."""
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size == 0 or size % GRAIN:
                raise ValueError(f"{path} has {size} bytes")
            os.posix_fallocate(fd, 0, size)  # if whoever made it came no further
            return cls(path, number, fd)
        finally:
            os.close(fd)

    def view(self, place: int, length: int) -> memoryview:
        """Some of its bytes."""
        return self.memory[place : place + length]

    def close(self) -> None:
        """Nobody needs the mapping any more: it goes with the last view. The file is left alone."""
        unpin, self.unpin = self.unpin, None
        if unpin is not None:
            unpin()
        del unpin  # which has hold of the memory, too
        with suppress(BufferError):
            self.memory.release()
            self._map.close()
