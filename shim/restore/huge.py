"""Huge pages for the memory that a GPU's driver has made to be checkpointed: its staging.

It is most of a GPU worker, and is read once: by the driver, which copies it to the GPU and gives it
back. With huge pages there are 512 times fewer faults when it is filled, and fewer pages for the
driver to pin. The memory of the worker's own stays as the worker has it.

CRIU repeats what madvise(2) has said of a mapping: a bit for each advice, in mm-PID.img
(images/vma.proto, `madv`). It does so when all mappings are in their places (criu/pie/restorer.c,
"Finally restore madvise() bits"), which is before we fill them, so one more bit is all that is
needed; and mappings are where they were, so what was aligned to 2 MiB still is. Without huge pages
in the kernel CRIU would fail at it; where they are only switched off, nothing changes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path

from shim.config import Config
from shim.errors import Damaged
from shim.proto import criu_pb as pb
from shim.proto.wire import WireError
from shim.restore.fields import block, fields, replaced, varint
from shim.snapshot import images as criu
from shim.snapshot.config import DAMAGED
from shim.snapshot.cuda import CudaProcess
from shim.snapshot.extents import Range
from shim.snapshot.images import NotIndexable, anonymous, fillable
from shim.snapshot.kernel import PROBES
from shim.snapshot.skeleton import united

_VMAS, _MADV = 14, 9  # numbers of fields: of mm_entry, of vma_entry
_START, _END = b"\x08", b"\x10"  # tags of numbers: fields 1 and 2 of vma_entry
_HUGE, _NEVER = 1 << 14, 1 << 15  # MADV_HUGEPAGE, MADV_NOHUGEPAGE: asm-generic/mman-common.h


def images(folder: Path, config: Config, processes: Sequence[CudaProcess]) -> dict[str, bytes]:
    """The images in `folder` that CRIU shall get others for, by name. Raises Damaged."""
    if config.text("gpu.pages") != "huge" or not PROBES["transparent-hugepage"]():
        return {}
    found = {}
    for process in processes:
        if process.staging:
            name = f"mm-{process.pid}.img"
            try:
                areas = [(area.address, area.address + area.length) for area in process.staging]
                found[name] = _advised(folder, name, united(areas))
            except (NotIndexable, WireError, ValueError, IndexError) as error:
                raise Damaged(f"{folder / name}: {error}", hint=DAMAGED) from error
    return found


def _advised(folder: Path, name: str, staging: Sequence[Range]) -> bytes:
    data = criu.read(folder, name, criu.MM)
    out = [data[:8]]
    for record in criu.records(data, 8, name):
        changed = _of_record(record, staging)
        out += [len(changed).to_bytes(4, "little"), changed]
    return b"".join(out)


def _of_record(record: bytes, staging: Sequence[Range]) -> bytes:
    out, done = [], 0
    for field in fields(record):
        if field.number == _VMAS and isinstance(field.value, bytes):
            out += [record[done : field.start], block(_VMAS, _of_mapping(field.value, staging))]
            done = field.stop
    return b"".join([*out, record[done:]])


def _of_mapping(entry: bytes, staging: Sequence[Range]) -> bytes:
    """A mapping with the advice, if it is staging for the most part.

    An advice is for all of a mapping. The kernel makes one of two that adjoin, so there may be
    something else in it; half of one is enough.
    """
    place = _place(entry)
    if place is not None and not _is_mostly(*place, staging):
        return entry  # nearly all are, of thousands: the rest of them is not read
    vma = pb.Vma.decode(entry)
    if not _is_mostly(vma.start, vma.end, staging) or not (fillable(vma) and anonymous(vma)):
        return entry
    said = [field.value for field in fields(entry) if field.number == _MADV]
    advice = next((word for word in reversed(said) if isinstance(word, int)), 0)
    return entry if advice & _NEVER else replaced(entry, {_MADV: [advice | _HUGE]})


def _place(entry: bytes) -> Range | None:
    """Where a mapping is, if that is what it begins with, as CRIU writes it."""
    if entry[:1] != _START:
        return None
    start, pos = varint(entry, 1)
    if entry[pos : pos + 1] != _END:
        return None
    end, pos = varint(entry, pos + 1)
    return (start, end) if entry[pos : pos + 1] not in (_START, _END) else None


def _is_mostly(begin: int, stop: int, staging: Sequence[Range]) -> bool:
    first = bisect_right(staging, begin, key=lambda area: area[1])
    last = bisect_left(staging, stop, key=lambda area: area[0])
    inside = sum(min(stop, end) - max(begin, start) for start, end in staging[first:last])
    return 2 * inside >= stop - begin > 0
