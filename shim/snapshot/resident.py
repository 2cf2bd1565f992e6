"""Where the bytes of a snapshot's memory are: for each address space, what of it is in the images.

An address space is a process's private memory, by address, or a shared object, by offset. CRIU's
pagemap says which of its pages are in the pages files; the index, which of these are extents, which
are left to CRIU and, as what is in neither, which are zeros that nobody restores.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from shim.proto import criu_pb as pb
from shim.snapshot import images as criu
from shim.snapshot import pagemap as pagemaps
from shim.snapshot.images import Memfds, NotIndexable, Process
from shim.snapshot.index import Index
from shim.snapshot.pagemap import Piece

PRIVATE, SHARED = "private", "shared"


@dataclass(frozen=True, order=True)
class Space:
    """An address space: PRIVATE and a pid, or SHARED and CRIU's number of the object."""

    kind: str
    number: int


@dataclass(frozen=True)
class Bytes:
    """Of some memory, in bytes. All but `size` are of what is in the images."""

    size: int  # what is mapped
    resident: int  # in the images: the sum of the three others
    bulk: int  # in extents, which we fill
    left: int  # left to CRIU
    zero: int  # dropped, as it is zero

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(
            self.size + other.size,
            self.resident + other.resident,
            self.bulk + other.bulk,
            self.left + other.left,
            self.zero + other.zero,
        )


NONE = Bytes(0, 0, 0, 0, 0)


class Spans:
    """Ranges of addresses that do not overlap, to be added up quickly."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(ranges)
        self._starts = [start for start, _ in ordered]
        self._ends = [end for _, end in ordered]
        lengths = (end - start for start, end in ordered)
        self._sums = list(accumulate(lengths, initial=0))

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self._sums[-1]

    def within(self, start: int, end: int) -> int:
        """The bytes of all ranges that lie in this one."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if first >= last:
            return 0
        before = max(0, start - self._starts[first])
        after = max(0, self._ends[last - 1] - end)
        return self._sums[last] - self._sums[first] - before - after


@dataclass(frozen=True)
class Extent:
    """An extent in its address space."""

    start: int
    length: int
    checksum: int


@dataclass
class Contents:
    """What the images have of one address space."""

    pages: str = ""  # name of CRIU's file
    pieces: list[Piece] = field(default_factory=list)  # address, offset in that file, length
    extents: list[Extent] = field(default_factory=list)
    resident: Spans = field(default_factory=lambda: Spans(()))
    bulk: Spans = field(default_factory=lambda: Spans(()))
    left: Spans = field(default_factory=lambda: Spans(()))

    def measured(self, start: int, end: int, size: int) -> Bytes:
        """How much of the memory from `start` to `end` is where."""
        resident, bulk = self.resident.within(start, end), self.bulk.within(start, end)
        left = self.left.within(start, end)
        return Bytes(size, resident, bulk, left, max(0, resident - bulk - left))


def contents(
    images: Path, processes: Sequence[Process], index: Index | None, notes: list[str]
) -> dict[Space, Contents]:
    """The contents of all address spaces. What cannot be known is told in `notes`.

    Without an index everything is left to CRIU.
    """
    found: dict[Space, Contents] = {}
    for space, name in _names(images, notes).items():
        try:
            loaded = pagemaps.load(images, name)
        except NotIndexable as error:
            notes.append(str(error))
            continue
        pieces = list(loaded.pieces())
        spans = Spans((start, start + length) for start, _, length in pieces)
        found[space] = Contents(loaded.pages, pieces, resident=spans, left=spans)
    if index is not None and not index.reason:
        _split(found, images, processes, index, notes)
    return found


def mapped(process: Process, vma: pb.Vma, memfds: Memfds) -> tuple[Space, int]:
    """The address space that a mapping shows, and where in it the mapping begins."""
    shmid = vma.shmid if vma.status & criu.SYSVIPC else memfds.object_of(vma)
    if shmid is not None:
        return Space(SHARED, shmid), vma.pgoff
    return Space(PRIVATE, process.pid), vma.start


def _names(images: Path, notes: list[str]) -> dict[Space, str]:
    try:
        private, shared = criu.pagemaps(images)
    except NotIndexable as error:
        notes.append(str(error))
        return {}
    found = {Space(PRIVATE, pid): name for pid, name in sorted(private.items())}
    return found | {Space(SHARED, shmid): name for shmid, name in sorted(shared.items())}


def _split(
    found: dict[Space, Contents],
    images: Path,
    processes: Sequence[Process],
    index: Index,
    notes: list[str],
) -> None:
    """Tell extents and zeros from what is left to CRIU."""
    for space, extent in _extents(index, processes, Memfds(images)):
        if space in found:
            found[space].extents.append(extent)
    try:
        there = criu.pagemaps(index.folder)
    except (NotIndexable, OSError) as error:
        notes.append(f"the skeleton cannot be read: {error}")
        return
    for space, contents in found.items():
        contents.bulk = Spans((e.start, e.start + e.length) for e in contents.extents)
        name = there[space.kind == SHARED].get(space.number)
        if name is None:  # nothing is taken out: CRIU reads its own pagemap
            continue
        try:
            left = pagemaps.load(index.folder, name).pieces()
            contents.left = Spans((start, start + length) for start, _, length in left)
        except NotIndexable as error:
            notes.append(f"the skeleton's {error}")


def _extents(
    index: Index, processes: Sequence[Process], memfds: Memfds
) -> Iterator[tuple[Space, Extent]]:
    words, halves = array("Q", index.extents), array("I", index.extents)
    of_pid = {process.pid: process for process in processes}
    tasks = [_Places(of_pid[pid], memfds) if pid in of_pid else None for pid in index.tasks]
    rows = zip(words[0::4], halves[4::8], halves[5::8], halves[6::8], strict=True)
    for address, length, checksum, task in rows:
        places = tasks[task]
        if places is not None:
            space, start = places.of(address)
            yield space, Extent(start, length, checksum)


class _Places:
    """Which address space is seen at the addresses of one process."""

    def __init__(self, process: Process, memfds: Memfds) -> None:
        self._starts = [vma.start for vma in process.vmas]
        self._seen = [mapped(process, vma, memfds) for vma in process.vmas]

    def of(self, address: int) -> tuple[Space, int]:
        place = max(0, bisect_right(self._starts, address) - 1)
        space, start = self._seen[place]
        return space, start + address - self._starts[place]
