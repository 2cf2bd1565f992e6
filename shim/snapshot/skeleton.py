"""The skeleton: pagemaps and pages files of CRIU's without what CRIU shall not restore.

Where a page lies in its file follows from the entries before it, so taking entries out means to
write the pages that are left to a new file, one after another.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

from shim.snapshot.images import PAGE, NotIndexable
from shim.snapshot.layout import Blob
from shim.snapshot.pagemap import Entry, Pagemap, encode
from shim.snapshot.tree import open_file

_CHUNK = 1 << 30

Range = tuple[int, int]  # of offsets in the pages file


def write(pagemap: Pagemap, blob: Blob, removed: list[Range], images: Path, folder: Path) -> int:
    """Write a pagemap and its pages into `folder`, without some of them; bytes of pages left.

    `removed` are in order and do not overlap.
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
    return _copy(images / blob.name, folder / blob.name, kept)


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


def _copy(source: Path, target: Path, ranges: list[Range]) -> int:
    """Copy ranges of a file, one after another, into a new one; bytes copied."""
    writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if ranges:
            reader = open_file(source)
            try:
                for start, end in ranges:
                    _copy_range(reader, writer, start, end, source.name)
            finally:
                os.close(reader)
        return sum(end - start for start, end in ranges)
    finally:
        os.close(writer)


def _copy_range(reader: int, writer: int, start: int, end: int, name: str) -> None:
    while start < end:
        length = min(_CHUNK, end - start)
        try:
            done = os.copy_file_range(reader, writer, length, start)
        except OSError as error:
            # Another file system, or one that cannot do it.
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            done = os.sendfile(writer, reader, start, length)
        if not done:
            raise NotIndexable(f"{name} is cut off at {start}")
        start += done
