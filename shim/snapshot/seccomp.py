"""seccomp.img: the filters of all threads, each with the one that was installed before it."""

from __future__ import annotations

from collections.abc import Iterator

from shim.errors import Damaged
from shim.proto import criu_pb as pb
from shim.proto.wire import WireError

TSYNC = 1  # SECCOMP_FILTER_FLAG_TSYNC: it was given to all threads of the process
NAME = "seccomp.img"
_INSTRUCTION = 8  # bytes
_MOST = 1 << 16  # filters; CRIU writes one chain per process, or per thread if they differ
_FIELD = 0x0A  # of SeccompFilters: number 1, a block


class Filters:
    """The filters by their positions; `record` is the image's one message, b"" without any.

    Raises Damaged if CRIU could not install them: it follows a chain that never ends for ever.
    """

    def __init__(self, record: bytes = b"") -> None:
        self._synced: list[bool] = []
        for number, block in enumerate(_blocks(record)):
            self._synced.append(self._read(number, block))

    def __len__(self) -> int:
        return len(self._synced)

    def synced(self, number: int) -> bool:
        """Whether all threads of the process got this filter, or one that was there before it."""
        return self._synced[number]

    def _read(self, number: int, block: bytes) -> bool:
        try:
            found = pb.SeccompFilter.decode(block)
        except WireError as error:
            raise Damaged(f"{NAME}: {error.message}") from error
        if not found.filter or len(found.filter) % _INSTRUCTION:
            raise Damaged(f"{NAME}: filter {number} has {len(found.filter)} bytes")
        before = found.prev
        if before is not None and before >= number:
            raise Damaged(f"{NAME}: filter {number} comes after filter {before}")
        return bool(found.flags & TSYNC) or (before is not None and self._synced[before])


def _blocks(record: bytes) -> Iterator[bytes]:
    """The filters' bytes, one by one: a list of them all could be larger than memory."""
    pos = count = 0
    while pos < len(record):
        size, start = _size(record, pos + 1)
        count += 1
        if record[pos] != _FIELD or start + size > len(record) or count > _MOST:
            raise Damaged(f"{NAME} is not a list of filters")
        yield record[start : start + size]
        pos = start + size


def _size(record: bytes, pos: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    value = 0
    for shift in range(0, 35, 7):
        if pos >= len(record):
            break
        value |= (record[pos] & 0x7F) << shift
        pos += 1
        if record[pos - 1] < 0x80:
            return value, pos
    raise Damaged(f"{NAME} is cut off")
