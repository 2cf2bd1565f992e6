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
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from shim.snapshot import index, skeleton
from shim.snapshot.extents import SIZE, renumbered
from shim.snapshot.images import NotIndexable
from shim.snapshot.index import Document, Index, Sums
from shim.snapshot.layout import (
    ANONYMOUS,
    BULK,
    COMPARED,
    Blob,
    Layout,
    in_pieces,
    packed,
    survey,
)
from shim.snapshot.pieces import Piece, Pieces, parse
from shim.snapshot.replacing import replacing, sync
from shim.snapshot.saving import Saving
from shim.snapshot.sharing import compare
from shim.snapshot.tree import open_file

__all__ = [
    "NotIndexable",
    "compare",
    "in_pieces",
    "make",
    "scan",
    "survey",
    "write",
    "write_reason",
]


def make(
    images: Path,
    folder: Path,
    threads: int = 0,
    alone: AbstractContextManager[object] | None = None,
    pages: Sequence[Path] | None = None,
) -> Index:
    """Make the index of `images` in `folder`, in the place of one that is there, and open it.

    Images that cannot be indexed have an index, too: one that says why. `threads`: 0 for one per
    processor; `alone` as of replacing(); `pages`: the folders in which the pages files are in
    pieces, if they are. The same images always make the same index. Raises OSError.
    """
    found = Pieces(pages or [images])
    with replacing(folder, alone) as draft:
        try:
            layout = survey(images) if pages is None else in_pieces(survey(images))
            check_sizes(layout, found)
            layout = compare(layout, found)
            write(layout, scan(layout, found, threads), images, found, draft)
        except NotIndexable as reason:
            for path in draft.iterdir():
                path.unlink()
            write_reason(str(reason), draft)
    return Index.open(folder, images, pages)


def check_sizes(layout: Layout, pages: Pieces) -> None:
    """Raise NotIndexable unless every pages file is as large as its pagemap makes it."""
    for blob in layout.sources:
        try:
            info = os.lstat(pages.path(blob.name))
        except FileNotFoundError:
            if not blob.size:  # CRIU makes none if there is nothing to write
                continue
            raise NotIndexable(f"{blob.name} is missing") from None
        if not stat.S_ISREG(info.st_mode) or info.st_size != blob.size:
            raise NotIndexable(f"{blob.name} has {info.st_size} bytes, not {blob.size}")


def scan(layout: Layout, pages: Pieces, threads: int = 0) -> bytes:
    """The extents of all bulk runs, as an array of struct thaw_extent. Reads the pages files."""
    runs = [run for run in layout.runs if run.flags & BULK]
    if not runs:
        return b""
    files = [(blob.name, -1) for blob in layout.sources]
    try:
        for number in sorted({run.source for run in runs}):
            name = layout.sources[number].name
            files[number] = (name, open_file(pages.path(name)))
        with Saving(packed(runs), files, threads=threads) as saving:
            return saving.finish()
    finally:
        for _, fd in files:
            if fd >= 0:
                os.close(fd)


def write(layout: Layout, extents: bytes, images: Path, pages: Pieces, folder: Path) -> None:
    """Write the index into a folder that is empty. `extents` are by source, then offset.

    What was bulk and anonymous and is in no extent was zero and is dropped. Extents from files that
    have nothing bulk (any longer) are left out. Raises NotIndexable if the pages files are not
    those of the layout, or if the index would be too large to be opened.
    """
    assert not any(run.flags & COMPARED for run in layout.runs), "compare() comes first"
    check_sizes(layout, pages)
    extents = _wanted(layout, extents)
    removed = _removed(layout, extents)
    sums, linked, left = _skeleton(layout, removed, pages, folder)
    records, tasks, sources = renumbered(extents)
    filled = sum(array("I", records)[4::8])
    gone = sum(end - start for ranges in removed for start, end in ranges)
    document = Document(
        reason="",
        tasks=[layout.tasks[number] for number in tasks],
        sources=[Blob(*layout.sources[number][:2]) for number in sources],
        skeleton=sums,
        images=_others(images, sums) | linked,
        sizes={"extents": filled, "zero": gone - filled, "skeleton": left},
    )
    index.write(folder, document, records)
    _sync_all(folder)


def write_reason(reason: str, folder: Path) -> None:
    """Write an index, into a folder that is empty, that only says why there is none."""
    index.write(folder, index.bare(reason), b"")
    _sync_all(folder)


def _skeleton(
    layout: Layout, removed: list[list[skeleton.Range]], pages: Pieces, folder: Path
) -> tuple[Sums, Sums, int]:
    """Write it: its files, the pieces that CRIU reads as they are, and bytes of pages left to it.

    CRIU can read a pages file as it is if that is whole, or the only piece.
    """
    sums: Sums = {}
    linked: Sums = {}
    left = 0
    files: list[list[Piece]] = [[] for _ in layout.pagemaps]
    for piece in layout.sources:
        files[piece.file].append(piece)
    for pagemap, pieces, ranges in zip(layout.pagemaps, files, removed, strict=True):
        if ranges or len(pieces) > 1:
            left += skeleton.write(pagemap, pieces, ranges, pages, folder)
            sums |= {name: index.checksum(folder / name) for name in (pagemap.name, pagemap.pages)}
            continue
        left += pagemap.size
        linked |= {p.name: index.checksum(pages.path(p.name)) for p in pieces if parse(p.name)}
    return sums, linked, left


def _wanted(layout: Layout, extents: bytes) -> bytes:
    wanted = {run.source for run in layout.runs if run.flags & BULK}
    sources = array("H", extents)[14::16].tolist()  # they come in order
    cuts = [(bisect_left(sources, n) * SIZE, bisect_right(sources, n) * SIZE) for n in wanted]
    return b"".join([extents[start:end] for start, end in sorted(cuts)])


def _removed(layout: Layout, extents: bytes) -> list[list[skeleton.Range]]:
    """Of each pages file, what is not in the skeleton: in order, without overlaps."""
    ranges: list[list[skeleton.Range]] = [[] for _ in layout.pagemaps]
    words, quarters = array("Q", extents), array("H", extents)
    lengths = array("I", extents)[4::8]
    places = [*zip(quarters[14::16], words[1::4], lengths, strict=True)]
    places += [
        (run.source, run.offset, run.length)
        for run in layout.runs
        if run.flags & BULK and run.flags & ANONYMOUS
    ]
    for source, offset, length in places:
        piece = layout.sources[source]
        ranges[piece.file].append((piece.start + offset, piece.start + offset + length))
    return [skeleton.united(of_file) for of_file in ranges]


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
