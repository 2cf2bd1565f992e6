"""What the GPU memory library and the engine say to one another, as native/gpu/wire.h has it.

What comes is a worker's, and is checked here for its form: whatever its bytes are, ValueError is
the only thing that is raised.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple, Self

NAME = "thaw-gpu"
MAGIC = 0x3155504757414854
VERSION = 1
RECORDS = 64  # of a message at most
DEVICES = 64
GRANULARITY = 2 << 20  # bytes: all sizes are multiples of it
GIVEN = 1  # of the flags of a struct thaw_gpu_about
RDMA = 1  # of those of a struct thaw_gpu_memory

MARKER = struct.Struct("<QIIiI")
HEADER = struct.Struct("<IIIIQ64s")
MEMORY = struct.Struct("<QQII")
ABOUT = struct.Struct(f"<QQ6QII{DEVICES * 16}s")
LARGEST = HEADER.size + max(ABOUT.size, RECORDS * MEMORY.size)  # bytes of a message

_TEXT = 64
_UUID = 16


class Kind(IntEnum):
    """What is asked for."""

    HELLO = 1
    HOLD = 2
    EXPORT = 3
    EMPTY = 4
    GIVE = 5
    OPEN = 6
    MAKE = 7


class Status(IntEnum):
    """What became of it."""

    OK = 0
    CUDA = 1
    BUSY = 2
    MISSING = 3
    WRONG = 4


class State(IntEnum):
    """In which the library is then."""

    RUNNING = 0
    HELD = 1
    EMPTIED = 2


# What of a worker's device memory stays with the driver, in the order of enum thaw_gpu_left.
LEFT = ("small", "pool", "managed", "other", "exported", "imported")


class Memory(NamedTuple):
    """A piece of device memory; bytes, and the number of its GPU in About.uuids."""

    id: int
    size: int
    device: int
    flags: int = 0

    @property
    def rdma(self) -> bool:
        """Whether network cards may reach it, and memory that takes its place."""
        return bool(self.flags & RDMA)

    def packed(self) -> bytes:
        """As a struct thaw_gpu_memory."""
        return MEMORY.pack(*self)


class About(NamedTuple):
    """What HELLO answers; bytes."""

    movable: int
    pieces: int
    left: dict[str, int]  # by the words of LEFT; none that are 0
    given: bool  # some of its memory was given back to it
    uuids: list[bytes]  # of its GPUs, 16 bytes each

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """A struct thaw_gpu_about."""
        if len(data) != ABOUT.size:
            raise ValueError(f"{len(data)} bytes about itself, not {ABOUT.size}")
        movable, pieces, *left, devices, flags, uuids = ABOUT.unpack(data)
        if devices > DEVICES:
            raise ValueError(f"{devices} GPUs")
        found = [uuids[at : at + _UUID] for at in range(0, devices * _UUID, _UUID)]
        if len(set(found)) != len(found):
            raise ValueError("a GPU is listed twice")
        words = {word: size for word, size in zip(LEFT, left, strict=True) if size}
        return cls(movable, pieces, words, bool(flags & GIVEN), found)


class Answer(NamedTuple):
    """One answer; its records are still bytes."""

    kind: int
    status: Status
    state: State
    many: int  # records
    value: int
    text: str
    records: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """A message that has come."""
        if len(data) < HEADER.size:
            raise ValueError(f"an answer of {len(data)} bytes")
        kind, status, state, count, value, text = HEADER.unpack_from(data)
        if count > RECORDS:
            raise ValueError(f"{count} records")
        words = text.partition(b"\0")[0].decode("ascii", "replace")
        printable = "".join(c if c.isascii() and c.isprintable() else "?" for c in words)
        rest = data[HEADER.size :]
        return cls(kind, Status(status), State(state), count, value, printable, rest)

    def memory(self) -> list[Memory]:
        """Its records, for an answer to EXPORT: by id, in sizes that can be."""
        if len(self.records) != self.many * MEMORY.size:
            raise ValueError(f"{len(self.records)} bytes of {self.many} records")
        found = [Memory(*fields) for fields in MEMORY.iter_unpack(self.records)]
        for memory in found:
            if not memory.id or not memory.size or memory.size % GRANULARITY:
                raise ValueError(f"piece {memory.id} of {memory.size} bytes")
        return found


class Marker(NamedTuple):
    """A struct thaw_gpu_marker."""

    pid: int  # in the process's own pid namespace
    engine: int  # the number of the descriptor that is for us
    state: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The first bytes of its page."""
        if len(data) != MARKER.size:
            raise ValueError("the marker is cut off")
        magic, version, pid, engine, state = MARKER.unpack(data)
        if magic != MAGIC or version != VERSION:
            raise ValueError(f"magic {magic:#x}, version {version}")
        if engine < 0:
            raise ValueError(f"descriptor {engine}")
        return cls(pid, engine, state)


def request(kind: Kind, value: int = 0, records: tuple[Memory, ...] | list[Memory] = ()) -> bytes:
    """A message to the library."""
    header = HEADER.pack(kind, 0, 0, len(records), value, bytes(_TEXT))
    return header + b"".join([memory.packed() for memory in records])
