"""Memory of this process at known places, to be saved and filled."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096
WINDOW = 4 << 20  # no extent crosses a multiple of it

libc = ctypes.CDLL(None, use_errno=True)


class Memory:
    """Anonymous memory of this process, whose 4 MiB windows begin at known places."""

    def __init__(self, windows: int) -> None:
        self.map = mmap.mmap(-1, (windows + 1) * WINDOW, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._all = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.start = -(-self._all // WINDOW) * WINDOW

    def write(self, address: int, data: bytes) -> None:
        at = address - self._all
        self.map[at : at + len(data)] = data

    def protect(self, address: int, length: int, protection: int) -> None:
        result = libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), protection)
        assert result == 0, os.strerror(ctypes.get_errno())


@contextmanager
def opened(*paths: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[list[int]]:
    files = [os.open(path, flags, 0o600) for path in paths]
    try:
        yield files
    finally:
        for fd in files:
            os.close(fd)
