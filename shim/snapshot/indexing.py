"""Making the index of a folder of CRIU's images: what it is, and how it is read, says index.py.

    survey()    which memory lies where, and what of it is bulk: from the small images alone
    compare()   what of it children share with their parents: it stays with CRIU
    scan()      the extents: where there are data, and their checksums
    write()     the skeleton, the checksums of all that CRIU reads, the documents

make() does all of it. A checkpoint that writes the pages itself does the parts: it knows the layout
while the pages are still in memory (checkpoint/pages.py).
"""

from __future__ import annotations

import os
import stat
from array import array
from bisect import bisect_left, bisect_right
from contextlib import AbstractContextManager
from pathlib import Path

from shim.snapshot import index, skeleton
from shim.snapshot.extents import SIZE, renumbered
from shim.snapshot.images import NotIndexable
from shim.snapshot.index import Document, Index, Sums
from shim.snapshot.layout import ANONYMOUS, BULK, COMPARED, Layout, packed, survey
from shim.snapshot.replacing import replacing, sync
from shim.snapshot.saving import Saving
from shim.snapshot.sharing import compare
from shim.snapshot.tree import open_file

__all__ = ["NotIndexable", "compare", "make", "scan", "survey", "write", "write_reason"]


def make(
    images: Path,
    folder: Path,
    threads: int = 0,
    alone: AbstractContextManager[object] | None = None,
) -> Index:
    """Make the index of `images` in `folder`, in the place of one that is there, and open it.

    Images that cannot be indexed have an index, too: one that says why. `threads`: 0 for one per
    processor; `alone` as of replacing(). The same images always make the same index. Raises
    OSError.
    """
    with replacing(folder, alone) as draft:
        try:
            layout = survey(images)
            check_sizes(layout, images)
            layout = compare(layout, images)
            write(layout, scan(layout, images, threads), images, draft)
        except NotIndexable as reason:
            for path in draft.iterdir():
                path.unlink()
            write_reason(str(reason), draft)
    return Index.open(folder, images)


def check_sizes(layout: Layout, images: Path) -> None:
    """Raise NotIndexable unless every pages file is as large as its pagemap makes it."""
    for blob in layout.sources:
        try:
            info = os.lstat(images / blob.name)
        except FileNotFoundError:
            if not blob.size:  # CRIU makes none if there is nothing to write
                continue
            raise NotIndexable(f"{blob.name} is missing") from None
        if not stat.S_ISREG(info.st_mode) or info.st_size != blob.size:
            raise NotIndexable(f"{blob.name} has {info.st_size} bytes, not {blob.size}")


def scan(layout: Layout, images: Path, threads: int = 0) -> bytes:
    """The extents of all bulk runs, as an array of struct thaw_extent. Reads the pages files."""
    runs = [run for run in layout.runs if run.flags & BULK]
    if not runs:
        return b""
    files = [(blob.name, -1) for blob in layout.sources]
    try:
        for number in sorted({run.source for run in runs}):
            name = layout.sources[number].name
            files[number] = (name, open_file(images / name))
        with Saving(packed(runs), files, threads=threads) as saving:
            return saving.finish()
    finally:
        for _, fd in files:
            if fd >= 0:
                os.close(fd)


def write(layout: Layout, extents: bytes, images: Path, folder: Path) -> None:
    """Write the index into a folder that is empty. `extents` are by source, then offset.

    What was bulk and anonymous and is in no extent was zero and is dropped. Extents from files that
    have nothing bulk (any longer) are left out. Raises NotIndexable if the pages files are not
    those of the layout, or if the index would be too large to be opened.
    """
    assert not any(run.flags & COMPARED for run in layout.runs), "compare() comes first"
    check_sizes(layout, images)
    extents = _wanted(layout, extents)
    removed = _removed(layout, extents)
    sums: Sums = {}
    left = 0
    for pagemap, blob, ranges in zip(layout.pagemaps, layout.sources, removed, strict=True):
        if ranges:
            left += skeleton.write(pagemap, blob, ranges, images, folder)
            sums |= {name: index.checksum(folder / name) for name in (pagemap.name, blob.name)}
        else:
            left += blob.size
    records, tasks, sources = renumbered(extents)
    filled = sum(array("I", records)[4::8])
    gone = sum(end - start for ranges in removed for start, end in ranges)
    document = Document(
        reason="",
        tasks=[layout.tasks[number] for number in tasks],
        sources=[layout.sources[number] for number in sources],
        skeleton=sums,
        images=_others(images, sums),
        sizes={"extents": filled, "zero": gone - filled, "skeleton": left},
    )
    index.write(folder, document, records)
    _sync_all(folder)


def write_reason(reason: str, folder: Path) -> None:
    """Write an index, into a folder that is empty, that only says why there is none."""
    index.write(folder, index.bare(reason), b"")
    _sync_all(folder)


def _wanted(layout: Layout, extents: bytes) -> bytes:
    wanted = {run.source for run in layout.runs if run.flags & BULK}
    sources = array("H", extents)[14::16].tolist()  # they come in order
    cuts = [(bisect_left(sources, n) * SIZE, bisect_right(sources, n) * SIZE) for n in wanted]
    return b"".join([extents[start:end] for start, end in sorted(cuts)])


def _removed(layout: Layout, extents: bytes) -> list[list[skeleton.Range]]:
    """Of each pages file, what is not in the skeleton: in order, without overlaps."""
    ranges: list[list[skeleton.Range]] = [[] for _ in layout.sources]
    words, quarters = array("Q", extents), array("H", extents)
    lengths = array("I", extents)[4::8]
    for source, start, length in zip(quarters[14::16], words[1::4], lengths, strict=True):
        ranges[source].append((start, start + length))
    for run in layout.runs:
        if run.flags & BULK and run.flags & ANONYMOUS:
            ranges[run.source].append((run.offset, run.offset + run.length))
    return [skeleton.united(of_source) for of_source in ranges]


def _others(images: Path, skeletons: Sums) -> Sums:
    """The checksums of the files that CRIU and runc read as they are."""
    names = sorted(
        entry.name
        for entry in os.scandir(images)
        if index.READ_BY_CRIU.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
    )
    return {name: index.checksum(images / name) for name in names if name not in skeletons}


def _sync_all(folder: Path) -> None:
    for path in folder.iterdir():
        sync(path)
    sync(folder)
