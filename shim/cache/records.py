"""What the store writes down of a snapshot, so that it is found again when the holder starts anew.

    a line of JSON            what it is about, and checksums of what follows
    struct thaw_extent[]      the snapshot's extents; `source` is a segment, `offset` a place there
    32 bytes for each         their SHA-256

Read as untrusted input: whatever its bytes are, it opens or ValueError is raised.
"""

from __future__ import annotations

import json
import re
from array import array
from dataclasses import field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from shim._native import lib
from shim.lean.values import Value
from shim.snapshot.extents import SIZE

DIGEST = 32  # bytes
_FORMAT = 1
_KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MOST_LINE = 1 << 20


class Extent(NamedTuple):
    """Where the data of one is, and what it should be."""

    source: int
    offset: int
    length: int  # bytes
    checksum: int  # CRC-32C


class Record(Value):
    """One snapshot's chunks. `key` stands for all that it is: see wire.key_of."""

    key: str
    path: Path  # the snapshot's folder
    regions: list[int]  # bytes of each
    extents: bytes = field(repr=False)
    digests: bytes = field(repr=False)

    @property
    def segments(self) -> frozenset[int]:
        """Those that it has something in."""
        return frozenset(array("H", self.extents)[14::16])

    @property
    def names(self) -> list[bytes]:
        """The digest of each chunk."""
        return [self.digests[at : at + DIGEST] for at in range(0, len(self.digests), DIGEST)]

    @property
    def bytes(self) -> int:
        """Of all chunks, whether others have them, too, or not."""
        return sum(array("I", self.extents)[4::8])


def listed(extents: bytes) -> list[Extent]:
    """What they say of their data, in order."""
    words, halves, quarters = array("Q", extents), array("I", extents), array("H", extents)
    columns = (quarters[14::16], words[1::4], halves[4::8], halves[5::8])
    return [Extent(*fields) for fields in zip(*columns, strict=True)]


def placed(extents: bytes, segments: list[int], places: list[int]) -> bytes:
    """Extents whose data lies there."""
    words, quarters = array("Q", extents), array("H")
    words[1::4] = array("Q", places)
    quarters.frombytes(words.tobytes())
    quarters[14::16] = array("H", segments)
    return quarters.tobytes()


def by_region(extents: bytes) -> dict[int, bytes]:
    """The extents of each region, as if it were the only one: number 0."""
    parts: dict[int, list[bytes]] = {}
    at = 0
    for number, run in groupby(array("I", extents)[6::8]):
        end = at + sum(SIZE for _ in run)
        parts.setdefault(number, []).append(extents[at:end])
        at = end
    return {number: _of_the_first(b"".join(part)) for number, part in parts.items()}


def dump(record: Record) -> bytes:
    """A record as it is written."""
    head = {
        "format": _FORMAT,
        "key": record.key,
        "path": str(record.path),
        "regions": record.regions,
        "extents": [len(record.extents), _crc(record.extents)],
        "digests": [len(record.digests), _crc(record.digests)],
    }
    line = json.dumps(head).encode() + b"\n"
    return b"%08x " % _crc(line) + line + record.extents + record.digests


def parse(data: bytes) -> Record:
    """The record that was written. Raises ValueError."""
    crc, _, rest = data.partition(b" ")
    end = rest.find(b"\n", 0, _MOST_LINE) + 1
    if not end or crc != b"%08x" % _crc(rest[:end]):
        raise ValueError("it is no record")
    head = json.loads(rest[:end])
    try:
        if head["format"] != _FORMAT or not _KEY.fullmatch(head["key"]):
            raise ValueError("it is of another format")
        (extents, _), (digests, _) = head["extents"], head["digests"]
        middle = end + extents
        record = Record(
            head["key"],
            Path(head["path"]),
            [int(size) for size in head["regions"]],
            rest[end:middle],
            rest[middle : middle + digests],
        )
    except (KeyError, TypeError) as error:
        raise ValueError("it is of another format") from error
    sums = (
        [len(record.extents), _crc(record.extents)],
        [len(record.digests), _crc(record.digests)],
    )
    if sums != (head["extents"], head["digests"]) or len(rest) != middle + digests:
        raise ValueError("it has another checksum")
    if extents % SIZE or digests * SIZE != extents * DIGEST:
        raise ValueError("it has another length")
    return record


def _of_the_first(extents: bytes) -> bytes:
    words = array("I", extents)
    words[6::8] = array("I", bytes(len(extents) // SIZE * 4))
    return words.tobytes()


def _crc(data: bytes) -> int:
    return lib.thaw_crc32c(0, data, len(data))
