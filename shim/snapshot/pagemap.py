"""Pagemaps: which memory lies, in which order, in a file of pages.

A head names the pages file by number, then an entry for each piece of memory says where it was.
Where it lies follows from the order: the pages of all entries stand one after another. CRIU writes
one entry per mebibyte or less (its pipe holds no more). The entries are read by hand: what newer
versions of CRIU add to them (compressed blocks, aligned payloads) must not be overlooked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from shim._native import lib
from shim.lean.values import Value
from shim.proto import criu_pb as pb
from shim.proto.wire import WireError, varint
from shim.snapshot import images as criu
from shim.snapshot.images import PAGE, TOP, NotIndexable

# Flags of an entry (criu/include/pagemap.h): in the pages file, and could be restored lazily.
_LAZY, _PRESENT = 2, 4

Entry = tuple[int, int, int]  # address, number of pages, flags
Piece = tuple[int, int, int]  # address, offset in the pages file, length, in bytes


class Pagemap(Value):
    """One pagemap. Its entries are by address, do not overlap, and all have pages in the file."""

    name: str
    pages: str  # name of the file with the pages
    head: bytes  # what stands before the first entry
    wide: bool  # the number of pages stands in the 64-bit field, as since CRIU 4.2
    entries: list[Entry]

    @property
    def size(self) -> int:
        """Bytes of the pages file."""
        return sum(pages for _, pages, _ in self.entries) * PAGE

    def pieces(self) -> Iterator[Piece]:
        """The pieces of memory, those as one that follow each other in memory."""
        start = end = offset = 0
        for address, pages, _ in self.entries:
            if address != end and end:
                yield start, offset, end - start
                offset += end - start
            if address != end:
                start = address
            end = address + pages * PAGE
        if end:
            yield start, offset, end - start


def sized(images: Path, name: str) -> tuple[str, int]:
    """The name of a pagemap's pages file, and the bytes that it has. Raises as `load`.

    That takes a hundredth of the time: a worker's has tens of thousands of entries.
    """
    data = criu.read(images, name, criu.PAGEMAP)
    head, begin = _head(data, name)
    entries = data[begin:]
    pages = lib.thaw_pagemap_pages(entries, len(entries))
    if pages < 0:  # it is said what is wrong
        found = load(images, name)
        return found.pages, found.size
    return _pages(head), pages * PAGE


def load(images: Path, name: str) -> Pagemap:
    """Read a pagemap. Raises NotIndexable for anything that CRIU 4.2 would not write."""
    data = criu.read(images, name, criu.PAGEMAP)
    head, begin = _head(data, name)
    try:
        entries, wide = _entries(data, begin)
    except (IndexError, ValueError) as error:
        said = str(error) if isinstance(error, ValueError) else "it is cut off"
        raise NotIndexable(f"{name}: {said}") from None
    return Pagemap(name, _pages(head), data[:begin], wide, entries)


def _head(data: bytes, name: str) -> tuple[pb.PagemapHead, int]:
    """And where the entries begin."""
    try:
        record = next(criu.records(data, 8, name))
        head = pb.PagemapHead.decode(record)
    except StopIteration:
        raise NotIndexable(f"{name} is empty") from None
    except WireError as error:
        raise NotIndexable(f"{name}: {error.message}") from error
    if head.encode() != record:
        raise NotIndexable(f"{name} has fields in its head that are unknown")
    return head, 8 + 4 + len(record)


def _pages(head: pb.PagemapHead) -> str:
    return f"pages-{head.pages_id}.img"


def _entries(data: bytes, pos: int) -> tuple[list[Entry], bool]:
    entries = []
    wide = False
    end = 0
    while pos < len(data):
        stop = pos + 4 + int.from_bytes(data[pos : pos + 4], "little")
        fields = [0, 0, 0, 0, _PRESENT, 0]  # by number; without flags, pages are in the file
        pos += 4
        while pos < stop:
            tag, value = data[pos], data[pos + 1]
            pos += 2
            if value > 0x7F:
                value, pos = _varint(data, pos, value)
            if tag & 7 or not 8 <= tag <= 40:
                raise ValueError("an entry has a field that is unknown")
            fields[tag >> 3] = value
        _, address, narrow, in_parent, flags, pages = fields
        wide = wide or pages > 0
        pages = pages or narrow
        if pos != stop or address % PAGE or address < end or not pages:
            raise ValueError(f"its entry for {address:#x} cannot be")
        if flags | _LAZY != _PRESENT | _LAZY or in_parent:
            raise ValueError(f"its entry for {address:#x} has flags {flags:#x}")
        end = address + pages * PAGE
        if end > TOP:
            raise ValueError(f"its entry for {address:#x} has {pages} pages")
        entries.append((address, pages, flags))
    return entries, wide


def _varint(data: bytes, pos: int, value: int) -> tuple[int, int]:
    """The number whose first byte, `value`, stands before `pos`, and where it ends."""
    value &= 0x7F
    for shift in range(7, 64, 7):
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    raise ValueError("a number exceeds 64 bits")


def encode(pagemap: Pagemap, entries: Iterable[Entry]) -> bytes:
    """The file, with other entries, in the form that it has."""
    out = bytearray(pagemap.head)
    for address, pages, flags in entries:
        narrow, wide = (b"\0", b"\x28" + varint(pages)) if pagemap.wide else (varint(pages), b"")
        entry = b"\x08%b\x10%b\x20%b%b" % (varint(address), narrow, varint(flags), wide)
        out += len(entry).to_bytes(4, "little") + entry
    return bytes(out)
