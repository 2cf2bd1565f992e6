"""The skeleton: pagemaps and pages files of CRIU's without what CRIU shall not restore.

Where a page lies in its file follows from the entries before it, so taking entries out means to
write the pages that are left to a new file, one after another.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shim.snapshot.images import PAGE, NotIndexable
from shim.snapshot.pagemap import Entry, Pagemap, encode
from shim.snapshot.pieces import Piece, Pieces, copy_range
from shim.snapshot.tree import open_file

Range = tuple[int, int]  # of offsets in the pages file


def write(
    pagemap: Pagemap, pieces: Sequence[Piece], removed: list[Range], pages: Pieces, folder: Path
) -> int:
    """Write a pagemap and its pages into `folder`, without some of them; bytes of pages left.

    `pieces` are those of its pages file; `removed` are in order and do not overlap.
    """
    entries: list[Entry] = []
    kept: list[Range] = []
    for address, flags, start, end in _left(pagemap, removed):
        entries.append((address, (end - start) // PAGE, flags))
        if kept and kept[-1][1] == start:
            kept[-1] = (kept[-1][0], end)
        else:
            kept.append((start, end))
    with open(folder / pagemap.name, "xb") as file:
        file.write(encode(pagemap, entries))
    return _copy(pieces, pages, kept, folder / pagemap.pages)


def united(ranges: Iterable[Range]) -> list[Range]:
    """The same places, in order and none twice."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _left(pagemap: Pagemap, removed: list[Range]) -> Iterator[tuple[int, int, int, int]]:
    """What stays of each entry: address, flags, first and last offset. Entries are never joined.

    CRIU keeps them as short as its pipe, and who reads them may rely on that.
    """
    starts = [start for start, _ in removed]
    offset = 0
    for address, pages, flags in pagemap.entries:
        end = offset + pages * PAGE
        place = max(0, bisect_right(starts, offset) - 1)
        at = offset
        while at < end:
            while place < len(removed) and removed[place][1] <= at:
                place += 1
            start, stop = removed[place] if place < len(removed) else (end, end)
            if at < start:
                yield address + at - offset, flags, at, min(start, end)
            at = max(at, stop) if start <= end else end
        offset = end


def _copy(pieces: Sequence[Piece], pages: Pieces, ranges: list[Range], target: Path) -> int:
    """Copy ranges of a pages file, one after another, into a new file; bytes copied."""
    writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in pieces:
            end = piece.start + piece.size
            here = [
                (max(a, piece.start), min(b, end)) for a, b in _within(ranges, piece.start, end)
            ]
            if here:
                _copy_piece(piece, pages, here, writer)
        return sum(end - start for start, end in ranges)
    finally:
        os.close(writer)


def _within(ranges: list[Range], start: int, end: int) -> Iterator[Range]:
    """What lies between two offsets of ranges that are in order."""
    first = bisect_right(ranges, start, key=lambda range_: range_[1])
    last = bisect_left(ranges, end, key=lambda range_: range_[0])
    for begin, stop in ranges[first:last]:
        yield max(begin, start), min(stop, end)


def _copy_piece(piece: Piece, pages: Pieces, ranges: list[Range], writer: int) -> None:
    reader = open_file(pages.path(piece.name))
    try:
        for start, end in ranges:
            if not copy_range(reader, writer, start - piece.start, end - piece.start):
                raise NotIndexable(f"{piece.name} is cut off")
    finally:
        os.close(reader)
