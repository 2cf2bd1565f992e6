"""Memory that a child still shares with its parent, found by comparing their pages.

After fork(), parent and child have the same pages until one of them writes. CRIU gives a child its
parent's pages back where the two are equal; whoever fills both would give each its own, and a
worker with forked children would need a multiple of its memory. So equal pages stay with CRIU, in
both, however few there are in a row. Pages that are equal because they are zero need not: as bulk
they are dropped, which takes no memory at all.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Self

from shim.snapshot.images import PAGE, NotIndexable
from shim.snapshot.layout import ANONYMOUS, BULK, COMPARED, SMALL, Layout, Pair, Run
from shim.snapshot.pieces import Pieces
from shim.snapshot.skeleton import Range
from shim.snapshot.tree import open_file

_SLICE = 1 << 20  # bytes read and compared at once: both halves stay in the L2 cache
_PIECE = 16 << 20  # bytes compared by one thread
_THREADS = min(8, len(os.sched_getaffinity(0)))  # more wait for each other: bytes are compared
_GAP = SMALL  # bytes between equal pages in which nothing can be bulk
_CHEAP = 64 << 20  # bytes of a pages file that may be copied whatever it brings
_ZEROS = bytes(_SLICE)
_ZERO_PAGE = bytes(PAGE)


def compare(layout: Layout, pages: Pieces) -> Layout:
    """The layout without COMPARED: what is equal has lost BULK. Reads the pages files if need be.

    Pages files of which more would be copied to the skeleton than filled from lose all BULK, too.
    Raises NotIndexable if a file ends too early.
    """
    runs = layout.runs
    if any(run.flags & COMPARED for run in runs):
        with _Files(layout, pages) as files:
            equal = _equal(layout, files)
        runs = [
            part
            for run in runs
            for part in (_without(run, equal[run.source]) if run.flags & COMPARED else [run])
        ]
    return replace(layout, runs=_worth_their_copy(runs, [piece.file for piece in layout.sources]))


def _worth_their_copy(runs: list[Run], files: list[int]) -> list[Run]:
    """`files` are those that the sources are pieces of. More than one piece is copied anyway."""
    left, bulk = Counter[int](), Counter[int]()
    for run in runs:
        (bulk if run.flags & BULK else left)[files[run.source]] += run.length
    pieces = Counter(files)
    whole = {n for n in left if pieces[n] == 1 and left[n] > max(bulk[n], _CHEAP)}
    return [
        run._replace(flags=run.flags & ~BULK) if files[run.source] in whole else run for run in runs
    ]


class _Files:
    """The pages of processes, open: by source."""

    def __init__(self, layout: Layout, pages: Pieces) -> None:
        self._sources = {
            number: piece
            for number, piece in enumerate(layout.sources)
            if piece.file < len(layout.tasks) and piece.size
        }
        self._pages = pages
        self._fds: dict[int, int] = {}

    def __enter__(self) -> Self:
        try:
            for number, piece in self._sources.items():
                self._fds[number] = open_file(self._pages.path(piece.name))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def read(self, source: int, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from a place in a pages file."""
        while buffer:
            done = os.preadv(self._fds[source], [buffer], offset)
            if not done:
                raise NotIndexable(f"{self._sources[source].name} is cut off at {offset}")
            buffer, offset = buffer[done:], offset + done


def _equal(layout: Layout, files: _Files) -> list[list[Range]]:
    """For each source, where pages are that stay with CRIU: in order, none twice."""
    private: list[list[Run]] = [[] for _ in layout.tasks]
    for run in layout.runs:
        file = layout.sources[run.source].file
        if file < len(layout.tasks):  # the pagemaps of processes come first
            private[file].append(run)
    twice = [
        (child, parent)
        for pair in layout.pairs
        for child, parent in _common(private[pair.child], private[pair.parent], pair)
        if (child.flags | parent.flags) & BULK
    ]
    equal: list[list[Range]] = [[] for _ in layout.sources]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda both: list(_joined(_equal_pages(files, *both))), twice)
        for (child, parent), ranges in zip(twice, found, strict=True):
            for start, end in ranges:
                equal[child.source].append((child.offset + start, child.offset + end))
                equal[parent.source].append((parent.offset + start, parent.offset + end))
    return [list(_joined(sorted(ranges))) for ranges in equal]


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ranges, which come in order, as one with the gaps in which nothing can be bulk.

    Pages that are equal by turns would be a range and two runs each, hundreds of thousands in a
    gibibyte; what is between them stays with CRIU either way.
    """
    first = last = -_GAP
    for start, end in ranges:
        if start - last < _GAP:
            last = max(last, end)
            continue
        if last > 0:
            yield first, last
        first, last = start, end
    if last > 0:
        yield first, last


def _common(children: list[Run], parents: list[Run], pair: Pair) -> Iterator[tuple[Run, Run]]:
    """The memory of a mapping that is in both lists, of the same address and length, in pieces."""
    ours = bisect_left(children, (pair.start,))
    theirs = bisect_left(parents, (pair.start,))
    while ours < len(children) and theirs < len(parents):
        child, parent = children[ours], parents[theirs]
        start, end = max(child.address, parent.address), min(_end(child), _end(parent))
        if start >= pair.end:
            return
        for at in range(start, end, _PIECE):
            until = min(at + _PIECE, end)
            yield _clipped(child, at, until), _clipped(parent, at, until)
        if _end(child) <= _end(parent):
            ours += 1
        else:
            theirs += 1


def _end(run: Run) -> int:
    return run.address + run.length


def _clipped(run: Run, start: int, end: int) -> Run:
    offset = run.offset + start - run.address
    return run._replace(address=start, offset=offset, length=end - start)


def _equal_pages(files: _Files, child: Run, parent: Run) -> Iterator[Range]:
    """Where pages are equal and have to be kept, in bytes from the start of both."""
    ours, theirs = bytearray(_SLICE), bytearray(_SLICE)
    both_anonymous = bool(child.flags & parent.flags & ANONYMOUS)
    for start in range(0, child.length, _SLICE):
        size = min(_SLICE, child.length - start)
        if size < len(ours):
            ours, theirs = bytearray(size), bytearray(size)
        files.read(child.source, child.offset + start, memoryview(ours))
        files.read(parent.source, parent.offset + start, memoryview(theirs))
        if both_anonymous and _may_have_zero_pages(ours):
            if ours != theirs or ours != _ZEROS[:size]:
                yield from _pages(ours, theirs, start, _ZERO_PAGE)
        elif ours == theirs:
            yield start, start + size
        else:
            yield from _pages(ours, theirs, start, b"")


def _may_have_zero_pages(data: bytearray) -> bool:
    return 0 in memoryview(data).cast("Q")[:: PAGE // 8].tolist()


def _pages(ours: bytearray, theirs: bytearray, start: int, dropped: bytes) -> Iterator[Range]:
    """Where pages are equal and not `dropped`, neighbours as one."""
    first = -1
    for at in range(0, len(ours), PAGE):
        page = ours[at : at + PAGE]
        if page == theirs[at : at + PAGE] and page != dropped:
            first = at if first < 0 else first
        elif first >= 0:
            yield start + first, start + at
            first = -1
    if first >= 0:
        yield start + first, start + len(ours)


def _without(run: Run, equal: list[Range]) -> Iterator[Run]:
    """A run in parts: bulk are those without equal pages, if they are large enough."""
    done, end = run.offset, run.offset + run.length
    for start, stop in [*_overlapping(equal, done, end), (end, end)]:
        if done < start:
            yield _part(run, done, start, BULK if start - done >= SMALL else 0)
        if start < stop:
            yield _part(run, start, stop, 0)
        done = max(done, stop)


def _overlapping(ranges: list[Range], start: int, end: int) -> Iterator[Range]:
    for place in range(max(0, bisect_left(ranges, (start,)) - 1), len(ranges)):
        first, last = ranges[place]
        if first >= end:
            return
        if start < last:
            yield max(first, start), min(last, end)


def _part(run: Run, start: int, end: int, bulk: int) -> Run:
    address = run.address + start - run.offset
    flags = run.flags & ANONYMOUS | bulk
    return run._replace(address=address, offset=start, length=end - start, flags=flags)
