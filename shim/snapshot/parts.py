"""One long file that is cut into parts: written from a pipe, read as if it were whole."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from pathlib import Path
from types import TracebackType
from typing import Self

from shim.errors import Damaged
from shim.snapshot.config import DAMAGED
from shim.snapshot.pieces import copy_range
from shim.snapshot.tree import CREATE, open_file

PART = 1 << 30  # bytes, at most: a registry's blob is as large as this (see artifact.py)
_WINDOW = 64 << 10
_CHUNK = 1 << 20


def part(base: Path, number: int) -> Path:
    """The name of one part; they are numbered from 0."""
    return base.with_name(f"{base.name}.{number:04d}")


def parts_of(base: Path) -> list[Path]:
    """The parts that are there, up to the first that is not."""
    found: list[Path] = []
    while os.path.lexists(part(base, len(found))):
        found.append(part(base, len(found)))
    return found


def cut(reader: int, base: Path, limit: int = PART) -> None:
    """Write all that comes out of the descriptor `reader` into parts. Raises OSError."""
    data = os.read(reader, min(_CHUNK, limit))
    number = 0
    while data:
        with open(os.open(part(base, number), CREATE, 0o600), "wb", buffering=0) as file:
            left = limit
            while data and left:
                written = file.write(data)
                left -= written
                data = data[written:] or os.read(reader, min(_CHUNK, left or limit))
        number += 1


def save(reader: int, path: Path) -> None:
    """Write all that comes out of the descriptor `reader` into one new file. Raises OSError."""
    with open(os.open(path, CREATE, 0o600), "wb", buffering=0) as file:
        while data := os.read(reader, _CHUNK):
            write_all(file.fileno(), data)


def write_all(writer: int, data: bytes) -> None:
    """Write all of it into a descriptor, however little is taken at once. Raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(writer, left) :]


class Parts:
    """The parts one after another, open for reading. Raises Damaged if one is not a plain file.

    With `whole` the only one is `base` itself.
    """

    def __init__(self, base: Path, *, whole: bool = False) -> None:
        self._paths = [base] if whole else parts_of(base)
        if not self._paths:
            raise Damaged(f"{part(base, 0)} is missing", hint=DAMAGED)
        self._ends: list[int] = []
        for path in self._paths:
            self._ends.append(self.size + _size(path))
        self._open: tuple[int, int] | None = None  # number, descriptor: read mostly in order
        self._at, self._window = 0, b""

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return self._ends[-1] if self._ends else 0

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes; fewer only at the end."""
        if not self._at <= offset <= offset + length <= self._at + len(self._window):
            self._at, self._window = offset, self._load(offset, max(length, _WINDOW))
        begin = offset - self._at
        return self._window[begin : begin + length]

    def copy(self, offset: int, length: int, writer: int, position: int) -> None:
        """Copy bytes of ours into the file `writer`, which stands elsewhere then.

        Raises Damaged if they are not there, and OSError.
        """
        if length <= _WINDOW:
            data = self.read(offset, length)
            if len(data) != length:
                raise self._short()
            os.lseek(writer, position, os.SEEK_SET)
            write_all(writer, data)
            return
        while length:
            number, start, left = self._find(offset)
            count = min(left, length)
            os.lseek(writer, position, os.SEEK_SET)
            if not copy_range(self._fd(number), writer, start, start + count):
                raise self._short()
            offset, position, length = offset + count, position + count, length - count

    def close(self) -> None:
        """Close what is open."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _load(self, offset: int, length: int) -> bytes:
        pieces = []
        while length and offset < self.size:
            number, start, left = self._find(offset)
            piece = os.pread(self._fd(number), min(left, length), start)
            if not piece:
                raise self._short()
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces)

    def _find(self, offset: int) -> tuple[int, int, int]:
        """The part with that byte, where it is in there, and how many follow."""
        number = bisect_right(self._ends, offset)
        if number == len(self._ends):
            raise self._short()
        begin = self._ends[number - 1] if number else 0
        return number, offset - begin, self._ends[number] - offset

    def _fd(self, number: int) -> int:
        if self._open is None or self._open[0] != number:
            self.close()
            fd = open_file(self._paths[number])
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            self._open = number, fd
        return self._open[1]

    def _short(self) -> Damaged:
        return Damaged(f"{self._paths[0]}: cut off", hint=DAMAGED)


def _size(path: Path) -> int:
    try:
        info = os.lstat(path)
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror}", hint=DAMAGED) from error
    if not stat.S_ISREG(info.st_mode):
        raise Damaged(f"{path} is no file", hint=DAMAGED)
    return info.st_size
