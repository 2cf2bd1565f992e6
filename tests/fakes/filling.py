"""What a fill needs: files with data, processes with memory to be filled, and the calls."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from shim._native import ffi, lib

PAGE = 4096
MIB = 1 << 20
FOREVER = -1
SPARSE = 1  # an extent's flag: zero pages need not be written
CHOSEN, PAGE_CACHE, DIRECT = range(3)  # options.source
READING, SHORT, CHECKSUM, TASK, OWN = range(1, 6)  # failure.stage

_TARGET = """
import ctypes, mmap, sys
size, prot, shared = map(int, sys.argv[1:])
kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
address = libc.mmap(None, ctypes.c_size_t(size), prot, kind | mmap.MAP_ANONYMOUS, -1, 0)
print(address, flush=True)
sys.stdin.read()
"""
READ_WRITE = 3


class Target:
    """A process with `size` bytes of fresh memory at `address`."""

    def __init__(self, size: int, prot: int = READ_WRITE, shared: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _TARGET, str(size), str(prot), str(int(shared))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.address = int(self.process.stdout.readline())
        self.pid = self.process.pid
        self.size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def read(self) -> bytes:
        """All of its memory."""
        with Path(f"/proc/{self.pid}/mem").open("rb") as memory:
            memory.seek(self.address)
            return memory.read(self.size)

    def present(self) -> list[bool]:
        """Of each page, whether the process has one (a bit that needs no privilege)."""
        with Path(f"/proc/{self.pid}/pagemap").open("rb") as pagemap:
            pagemap.seek(self.address // PAGE * 8)
            entries = pagemap.read(self.size // PAGE * 8)
        return [entry >> 63 == 1 for entry in memoryview(entries).cast("Q")]


@dataclass(frozen=True)
class Piece:
    """An extent, before its checksum is known."""

    offset: int
    length: int
    place: int  # bytes from the target's address
    task: int = 0
    source: int = 0
    flags: int = 0


class Blob:
    """A file with data."""

    def __init__(self, folder: Path, data: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data = data
        self.path = folder / "blob"
        self.path.write_bytes(data)
        self.fd = os.open(self.path, os.O_RDONLY)

    def drop(self) -> None:
        """Out of the page cache, if its file system lets it go."""
        os.fsync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self.fd)


class Fill:
    """A struct thaw_fill. Calls that fail raise OSError."""

    def __init__(
        self,
        blobs: Sequence[Blob],
        pieces: Sequence[Piece],
        addresses: Sequence[int] = (0,),
        *,
        budget: int = 64 * MIB,
        readers: int = 0,
        fillers: int = 0,
        source: int = CHOSEN,
        damage: Sequence[int] = (),
    ) -> None:
        self.extents = ffi.new("struct thaw_extent[]", max(len(pieces), 1))
        known: dict[Piece, int] = {}
        for number, piece in enumerate(pieces):
            if piece not in known:
                data = blobs[piece.source].data[piece.offset : piece.offset + piece.length]
                known[piece] = lib.thaw_crc32c(0, data, len(data))
            extent = self.extents[number]
            extent.address = addresses[piece.task] + piece.place
            extent.offset, extent.length, extent.flags = piece.offset, piece.length, piece.flags
            extent.task, extent.source = piece.task, piece.source
            extent.checksum = known[piece] ^ (number in damage)
        sources = ffi.new("struct thaw_source[]", max(len(blobs), 1))
        for number, blob in enumerate(blobs):
            sources[number].size, sources[number].file = len(blob.data), blob.fd
        options = ffi.new("struct thaw_fill_options *", (budget, readers, fillers, source))
        made = ffi.new("struct thaw_fill **")
        _check(lib.thaw_fill_open(sources, len(blobs), self.extents, len(pieces), options, made))
        self._fill: Any = made[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prefetch(self) -> None:
        _check(lib.thaw_fill_prefetch(self._fill))

    def hurry(self) -> None:
        lib.thaw_fill_hurry(self._fill)

    def start(self, pids: Sequence[int] | None = None, nodes: Sequence[int] = ()) -> None:
        """No pids: only verify."""
        given = ffi.NULL if pids is None else ffi.new("int[]", list(pids))
        on = ffi.new("int[]", list(nodes)) if nodes else ffi.NULL
        _check(lib.thaw_fill_start(self._fill, given, len(pids or ()), on, len(nodes)))

    def wait(self, milliseconds: int = FOREVER) -> None:
        _check(lib.thaw_fill_wait(self._fill, milliseconds))

    def cancel(self) -> None:
        lib.thaw_fill_cancel(self._fill)

    def progress(self) -> Any:
        """A struct thaw_progress."""
        progress = ffi.new("struct thaw_progress *")
        lib.thaw_fill_progress(self._fill, progress)
        return progress

    def failure(self) -> tuple[int, int, int]:
        """The errno, the stage and the extent."""
        failure = ffi.new("struct thaw_failure *")
        lib.thaw_fill_failure(self._fill, failure)
        return failure.error, failure.stage, failure.place

    def close(self) -> None:
        lib.thaw_fill_close(self._fill)
        self._fill = ffi.NULL


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))


@lru_cache(maxsize=8)
def noise(size: int, seed: int = 0) -> bytes:
    """Data without a zero page."""
    return random.Random(seed).randbytes(size)


def in_a_row(size: int, step: int = 4 * MIB) -> list[Piece]:
    """The whole of a blob to the same place in a task."""
    return [Piece(at, min(step, size - at), at) for at in range(0, size, step)]


def scattered(size: int, seed: int, tasks: int = 1, source: int = 0) -> list[Piece]:
    """Pieces of all lengths in the order of their data, with gaps, to the same places."""
    rng, at, pieces = random.Random(seed), 0, []
    while at < size:
        length = min(PAGE * rng.choice((1, 2, 7, 16, 65, 300, 1024)), size - at)
        task = rng.randrange(tasks)
        pieces.append(Piece(at, length, at, task, source, rng.choice((0, SPARSE))))
        at += length + PAGE * rng.choice((0, 0, 0, 1, 15, 17, 200))
    return pieces


def expected(blobs: Sequence[Blob], pieces: Sequence[Piece], task: int, size: int) -> bytes:
    """What fresh memory of a task holds after the fill."""
    memory = bytearray(size)
    for piece in pieces:
        if piece.task == task:
            data = blobs[piece.source].data[piece.offset : piece.offset + piece.length]
            memory[piece.place : piece.place + piece.length] = data
    return bytes(memory)
