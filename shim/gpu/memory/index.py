"""Where a snapshot's GPU memory lies: `index/gpu`, and the pieces that it is about.

    index/gpu            a header, then records of struct thaw_extent (native/thaw.h)
    pages/gpu-1.img.NNNN what of the regions is not zero, one stretch after another

The regions themselves are in the config document, by process and id; an extent's task is a region's
number there, its address a place in the region, and its source the number of a piece. What no
extent covers is zero.

Read as untrusted input: whatever its bytes are, it opens or Damaged is raised.
"""

from __future__ import annotations

import os
import stat
import struct
from array import array
from dataclasses import field
from pathlib import Path

from shim._native import lib
from shim.errors import Damaged
from shim.lean.values import Value
from shim.snapshot.config import DAMAGED
from shim.snapshot.extents import SIZE, Columns, Range, check_regions
from shim.snapshot.layout import Blob
from shim.snapshot.pieces import gpu_pieces
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.tree import CREATE, open_file

FILE = "gpu"  # in the folder of the index

_FORMAT = 1
_HEADER = struct.Struct("<8sIIII")  # magic, format, count, records, header before this
_MAGIC = b"THAWGPUX"
_MOST = 128 << 20  # bytes


class Stored(Value):
    """The GPU memory of one snapshot. Its fields are those of Index that a fill needs."""

    folder: Path  # of the index
    sources: list[Blob]
    paths: list[Path]
    extents: bytes  # struct thaw_extent[]
    regions: list[int]  # bytes of each
    tasks: list[int] = field(default_factory=list)  # there are none: nobody is written to
    ranges: list[list[Range]] = field(default_factory=list)
    remedy: str = DAMAGED

    @property
    def count(self) -> int:
        """How many extents there are."""
        return len(self.extents) // SIZE

    @property
    def bytes(self) -> int:
        """All that is stored."""
        return sum(array("I", self.extents)[4::8])

    @property
    def disks(self) -> list[Path]:
        """Where each source is, for all that we know."""
        return [path.parent for path in self.paths]


def write(folder: Path, extents: bytes) -> None:
    """Write the index into the folder of the index of memory. Raises OSError."""
    head = _HEADER.pack(_MAGIC, _FORMAT, len(extents) // SIZE, _crc(extents), 0)[:-4]
    folder.mkdir(mode=0o700, exist_ok=True)
    with open(os.open(folder / FILE, CREATE, 0o600), "wb") as file:
        file.write(head + _crc(head).to_bytes(4, "little") + extents)
        file.flush()
        os.fsync(file.fileno())


def stored(snapshot: Snapshot) -> Stored | None:
    """What GPU memory a snapshot has past the driver; None if it has none. Raises Damaged."""
    config = snapshot.config
    regions = [region.size for region in config.gpu.regions]
    pieces = gpu_pieces(config.pages)
    if not regions and not pieces:
        return None
    path = snapshot.index / FILE
    try:
        extents = _records(_read(path))
        check_regions(Columns.of(extents), [size for _, size in pieces], regions)
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Damaged(f"cannot use {path}: {reason}", hint=DAMAGED) from error
    paths = [snapshot.piece(name) for name, _ in pieces]
    return Stored(snapshot.index, [Blob(*piece) for piece in pieces], paths, extents, regions)


def _read(path: Path) -> bytes:
    with open(open_file(path), "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or info.st_size > _MOST:
            raise ValueError("it is no file of ours")
        return file.read(_MOST)


def _records(data: bytes) -> bytes:
    if len(data) < _HEADER.size:
        raise ValueError("it is cut off")
    magic, version, count, of_records, of_header = _HEADER.unpack_from(data)
    if of_header != _crc(data[: _HEADER.size - 4]):
        raise ValueError("its header has another checksum")
    if magic != _MAGIC or version != _FORMAT:
        raise ValueError("it is of another format")
    extents = data[_HEADER.size :]
    if len(extents) != count * SIZE or _crc(extents) != of_records:
        raise ValueError("it has another checksum")
    return extents


def _crc(data: bytes) -> int:
    return lib.thaw_crc32c(0, data, len(data))
