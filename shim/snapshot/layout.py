"""What is bulk: the runs of memory in CRIU's images, and which of them we fill ourselves.

Bulk are the runs of `SMALL` bytes and more in mappings that another process can write to once they
are restored. All else stays with CRIU: it makes the mappings, and it has to have something to read
in every process. Nothing here reads a pages file, so that the layout of images can be known before
there are pages in them.

In a snapshot pages files are in pieces: `in_pieces` makes a layout of these from one of the files.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from shim.lean.values import Value
from shim.proto import criu_pb as pb
from shim.snapshot import images as criu
from shim.snapshot import pagemap as pagemaps
from shim.snapshot import pieces
from shim.snapshot.images import PAGE, TOP, NotIndexable, Process
from shim.snapshot.pagemap import Pagemap
from shim.snapshot.pieces import Piece

# Shorter runs stay with CRIU: reading them with the others costs less than an extent's own calls.
SMALL = 64 << 10

# Flags of a run. The first two are those of struct thaw_run.
ANONYMOUS = 1  # private memory that is zero where it was never written
BULK = 2  # extents are wanted
COMPARED = 4  # bulk as far as the parent's memory differs: compare() finds out

NO_TASK = 0xFFFF_FFFF  # the task of a run that is mapped nowhere
_MOST_SOURCES = 1 << 16
_RUN = struct.Struct("<QQQIHH")
_TURN = 8 << 20  # bytes that one thread writes at once (native/pieces.h)


class Blob(NamedTuple):
    """A file with data, and its size in bytes."""

    name: str
    size: int


class Run(NamedTuple):
    """Memory that lies in one piece both in a task and in a pages file; see struct thaw_run."""

    address: int
    offset: int
    length: int
    task: int  # number in the list of tasks
    source: int  # number in the list of sources
    flags: int


class Pair(NamedTuple):
    """A mapping whose pages a child may share with its parent: numbers of tasks, addresses."""

    child: int
    parent: int
    start: int
    end: int


class Layout(Value):
    """All memory in the images; runs by source, offset."""

    tasks: list[int]  # pids as the processes see them
    sources: list[Piece]  # by file (number of its pagemap), start
    pagemaps: list[Pagemap]  # those of the tasks, in their order, then those of shared memory
    runs: list[Run]
    pairs: list[Pair]


def packed(runs: Iterable[Run]) -> bytes:
    """Runs as an array of struct thaw_run."""
    return b"".join([_RUN.pack(*run[:5], run.flags & (ANONYMOUS | BULK)) for run in runs])


def by_turns(runs: Iterable[Run], disks: Sequence[object]) -> list[Run]:
    """The runs in the order in which they are best written: `disks[n]` has the source n.

    They are cut where they are cut into extents anyway, so these stay what they would be.
    """
    if len(set(disks)) < 2:
        return list(runs)
    parts = [
        part
        for run in runs
        for part in _parts(run, range(-run.address % _TURN or _TURN, run.length, _TURN))
    ]
    turns = pieces.dealt([p.length for p in parts], [disks[p.source] for p in parts], _TURN)
    return [part for turn in turns for part in parts[turn]]


def survey(images: Path) -> Layout:
    """The layout of a folder of CRIU's images. Raises NotIndexable.

    Every page that CRIU has written, or would write if its pages files were not /dev/null, is in
    one run. A run of shared memory that no process maps has NO_TASK.
    """
    criu.check_version(images)
    processes = criu.processes(images)
    tree = {entry.pid: entry for entry in criu.tree(images)}
    private, shared = _pagemaps(images, processes)
    pairs = list(_pairs(processes))
    paired: list[set[int]] = [set() for _ in processes]
    for pair in pairs:
        paired[pair.child].add(pair.start)
        paired[pair.parent].add(pair.start)
    runs: list[Run] = []
    for number, process in enumerate(processes):
        threads = [process.pid, *tree[process.pid].threads]
        work = _Private(number, paired[number], criu.restartable(images, threads))
        runs += work.runs(private[number], process.vmas)
    mappings = _Mappings(images, processes)
    for source, (shmid, pagemap) in enumerate(shared.items(), len(private)):
        runs += mappings.runs(shmid, source, pagemap)
    found = [*private, *shared.values()]
    if len({pagemap.pages for pagemap in found}) != len(found):
        raise NotIndexable("two pagemaps have one pages file")
    sources = [Piece(pagemap.pages, pagemap.size, n, 0) for n, pagemap in enumerate(found)]
    layout = Layout([process.pid for process in processes], sources, found, runs, pairs)
    return _numbered(layout)


def in_pieces(layout: Layout) -> Layout:
    """The same memory, with every pages file in pieces (pieces.py). Raises NotIndexable."""
    files = [(source.name, source.size) for source in layout.sources]
    try:
        sources = pieces.cut(files)
    except OSError as error:
        raise NotIndexable(error.strerror) from error
    numbers = {(source.file, source.start): number for number, source in enumerate(sources)}
    runs = [part for run in layout.runs for part in _in_pieces(run, numbers)]
    return _numbered(replace(layout, sources=sources, runs=runs))


def _in_pieces(run: Run, numbers: Mapping[tuple[int, int], int]) -> Iterator[Run]:
    size = pieces.PIECE
    for part in _parts(run, range(-run.offset % size or size, run.length, size)):
        start = part.offset - part.offset % size
        source = numbers[run.source, start]
        yield part._replace(offset=part.offset - start, source=source)


def _numbered(layout: Layout) -> Layout:
    if len(layout.sources) > _MOST_SOURCES:
        raise NotIndexable(f"there are {len(layout.sources)} files of pages")
    return layout


def _pagemaps(images: Path, processes: list[Process]) -> tuple[list[Pagemap], dict[int, Pagemap]]:
    private, shared = criu.pagemaps(images)
    for process in processes:
        if process.pid not in private:
            raise NotIndexable(f"pagemap-{process.pid}.img is missing")
    if len(private) != len(processes):
        raise NotIndexable("there are pagemaps of processes that have no memory")
    return (
        [pagemaps.load(images, private[process.pid]) for process in processes],
        {shmid: pagemaps.load(images, shared[shmid]) for shmid in sorted(shared)},
    )


def _pairs(processes: list[Process]) -> Iterator[Pair]:
    numbers = {process.pid: number for number, process in enumerate(processes)}
    for child, process in enumerate(processes):
        parent = numbers.get(process.parent)
        if parent is None or processes[parent].executable != process.executable:
            continue
        theirs = {vma.start: vma for vma in processes[parent].vmas}
        for vma in process.vmas:
            if vma.start in theirs and criu.inherited(vma, theirs[vma.start]):
                yield Pair(child, parent, vma.start, vma.end)


class _Private:
    """The private memory of one process, whose pagemap has the same number as the process."""

    def __init__(self, number: int, paired: set[int], kept: set[int]) -> None:
        self._number = number
        self._paired = paired
        # The kernel writes a thread's area for restartable sequences as soon as it is registered,
        # which CRIU does before we fill: the old contents may not come after that.
        self._kept = sorted(kept)

    def runs(self, pagemap: Pagemap, vmas: list[pb.Vma]) -> list[Run]:
        found = [run for piece in _cut(pagemap, vmas) for run in self._run(*piece)]
        if found and all(run.flags & BULK for run in found):
            # CRIU looks at the first entry of a process without asking whether there is one
            # (premap_priv_vmas in criu/mem.c).
            found[:1] = _parts(found[0], [PAGE])
            found[0] = found[0]._replace(flags=found[0].flags & ANONYMOUS)
        return found

    def _run(self, vma: pb.Vma, address: int, offset: int, length: int) -> Iterator[Run]:
        flags = ANONYMOUS if criu.anonymous(vma) else 0
        run = Run(address, offset, length, self._number, self._number, flags)
        if not criu.fillable(vma) or length < SMALL:
            yield run
            return
        bulk = BULK | (COMPARED if vma.start in self._paired else 0)
        first = bisect_left(self._kept, address)
        held = self._kept[first : bisect_left(self._kept, address + length)]
        places = [page - address + at for page in held for at in (0, PAGE)]
        for part in _parts(run, places):
            large = part.length >= SMALL and part.address not in held
            yield part._replace(flags=flags | bulk) if large else part


def _cut(pagemap: Pagemap, vmas: list[pb.Vma]) -> Iterator[tuple[pb.Vma, int, int, int]]:
    """The pieces of a pagemap within one mapping each: mapping, address, offset, length."""
    remaining = iter(vmas)
    vma = next(remaining, None)
    for address, offset, length in pagemap.pieces():
        done = 0
        while done < length:
            at = address + done
            while vma is not None and vma.end <= at:
                vma = next(remaining, None)
            if vma is None or at < vma.start:
                raise NotIndexable(f"{pagemap.name} has pages at {at:#x}, outside mappings")
            part = min(length - done, vma.end - at)
            yield vma, at, offset + done, part
            done += part


def _parts(run: Run, places: Iterable[int]) -> list[Run]:
    """A run, cut at some distances from its start."""
    bounds = sorted({0, run.length, *(place for place in places if place < run.length)})
    return [
        run._replace(address=run.address + a, offset=run.offset + a, length=b - a)
        for a, b in pairwise(bounds)
    ]


class _Mapping(NamedTuple):
    start: int  # bytes in the shared memory
    end: int
    task: int
    address: int
    bulk: bool


class _Mappings:
    """Where shared memory is mapped, so that its pages can be read and written."""

    def __init__(self, images: Path, processes: list[Process]) -> None:
        memfds = criu.Memfds(images)
        self._found: dict[int, list[_Mapping]] = {}
        self._ipc: set[int] = set()
        for task, process in enumerate(processes):
            for vma in process.vmas:
                if vma.status & criu.SYSVIPC:
                    self._ipc.add(vma.shmid)
                shmid = memfds.object_of(vma)
                if shmid is not None:
                    if vma.pgoff % PAGE or vma.pgoff >= TOP:
                        raise NotIndexable(f"a mapping at {vma.start:#x} is of a part of a page")
                    bulk = criu.fillable(vma) and memfds.may_write(vma)
                    end = vma.pgoff + vma.end - vma.start
                    mapping = _Mapping(vma.pgoff, end, task, vma.start, bulk)
                    self._found.setdefault(shmid, []).append(mapping)

    def runs(self, shmid: int, source: int, pagemap: Pagemap) -> Iterator[Run]:
        """The runs of one object: where they can, in mappings that can be written."""
        ranked = sorted(self._found.get(shmid, []), key=lambda m: (not m.bulk, m.task, m.address))
        if shmid in self._ipc:  # System V's: they come with their namespace
            ranked = [mapping._replace(bulk=False) for mapping in ranked]
        stretches = _stretches(ranked)
        place = 0
        for start, offset, length in pagemap.pieces():
            done = 0
            while done < length:
                at, end = start + done, start + length
                while place < len(stretches) and stretches[place].end <= at:
                    place += 1
                here = stretches[place] if place < len(stretches) else _Stretch(end, end, None)
                mapping, until = (None, here.start) if at < here.start else (here.mapping, here.end)
                part = min(until, end) - at
                yield _shared_run(mapping, at, offset + done, part, source)
                done += part


class _Stretch(NamedTuple):
    start: int  # bytes in the shared memory
    end: int
    mapping: _Mapping | None


def _stretches(ranked: list[_Mapping]) -> list[_Stretch]:
    """Where which mapping is the first of those there, in order; nothing where there is none.

    There may be thousands, and tasks may be stopped meanwhile: one pass over where they begin and
    end, with a heap of those that were begun.
    """
    coming = sorted(range(len(ranked)), key=lambda rank: ranked[rank].start, reverse=True)
    begun: list[int] = []  # ranks; one that has ended goes when it is the best
    found: list[_Stretch] = []
    for at, until in pairwise(sorted({place for m in ranked for place in m[:2]})):
        while coming and ranked[coming[-1]].start <= at:
            heappush(begun, coming.pop())
        while begun and ranked[begun[0]].end <= at:
            heappop(begun)
        if begun:
            best = ranked[begun[0]]
            joins = found and found[-1].end == at and found[-1].mapping is best
            found.append(_Stretch(found.pop().start if joins else at, until, best))
    return found


def _shared_run(mapping: _Mapping | None, at: int, offset: int, length: int, source: int) -> Run:
    if mapping is None:
        return Run(at, offset, length, NO_TASK, source, 0)
    bulk = mapping.bulk and length >= SMALL
    address = mapping.address + at - mapping.start
    return Run(address, offset, length, mapping.task, source, BULK if bulk else 0)
