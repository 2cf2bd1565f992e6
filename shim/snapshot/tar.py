"""The headers of a tar, read as an untrusted document: all of them, before anything is done.

Python's tarfile takes a damaged header for the end of the archive, and leaves out the rest of a
record it cannot read: half an archive would pass for a whole one. Here everything that is not
understood is damage. Understood is what GNU tar writes in its formats posix and gnu: pax(1)'s
extended headers with SCHILY.xattr, long names, and all four ways to write a sparse file (GNU tar's
manual, "Sparse Formats"; src/sparse.c has the old one).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from shim.errors import Damaged
from shim.lean.values import Value
from shim.snapshot.config import DAMAGED
from shim.snapshot.sparse import MOST, Regions, listed, old_entries
from shim.snapshot.tarfields import COMPONENT, PATH, decimal, inner_path, number, octal, owner, time

BLOCK = 512
MEMBERS = 1 << 20
RECORDS = 16 << 20  # bytes of one extended header: a sparse file's map is in there
ALL_RECORDS = 64 << 20  # bytes of all of them: attributes are kept in memory

_PADDING = 1 << 24  # bytes of zeros after the end; GNU tar fills up its last record
_USTAR = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
_USED = frozenset((b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"))
_UNUSED = frozenset((b"atime", b"ctime", b"uname", b"gname"))
_MOST_ATTRIBUTES = 1024
_MAPS = frozenset(
    _SPARSE + key
    for key in (b"major", b"minor", b"name", b"realsize", b"size", b"numblocks", b"map")
)
_KNOWN = _USED | _UNUSED | _MAPS
_LINE = 24  # bytes of a line in a map, at most


class Kind(Enum):
    """What a member is."""

    FILE = b"0"
    LINK = b"1"
    SYMLINK = b"2"
    CHARACTERS = b"3"
    BLOCKS = b"4"
    FOLDER = b"5"
    FIFO = b"6"


class Member(Value):
    """One member. `path` is relative and has neither "." nor ".."; the archive's root is empty."""

    kind: Kind
    path: bytes
    target: bytes  # a link's: another member's path; a symlink's: as it is written
    mode: int  # permission bits
    uid: int
    gid: int
    mtime: int  # nanoseconds since the epoch
    size: int  # of the file, holes counted
    start: int  # of its data in the archive
    regions: Regions | None  # where the data belongs; None: there are no holes
    device: tuple[int, int]
    xattrs: tuple[tuple[bytes, bytes], ...]


class Source(Protocol):
    """Where the bytes of an archive come from."""

    @property
    def size(self) -> int | None:
        """Bytes of the whole archive; None if they come from a pipe: what is after it is not read.

        From a pipe nothing is read twice, and nothing that lies before what was read already.
        """

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes; fewer only at the end."""


def members(source: Source, where: str) -> Iterator[Member]:
    """The members in their order. Raises Damaged, naming `where`, at what is no tar."""
    reader = _Reader(source)
    for _ in range(MEMBERS):
        try:
            member = reader.next()
        except ValueError as error:
            raise Damaged(f"{where}: {error} at byte {reader.position}", hint=DAMAGED) from error
        if member is None:
            return
        yield member
    raise Damaged(f"{where}: more than {MEMBERS} members", hint="no snapshot of Thaw has as many")


@dataclass
class _Extra:
    """What headers before a member's own say of it."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    map: Regions = field(default_factory=Regions)  # of format 0.0
    path: bytes | None = None
    target: bytes | None = None


class _Header(Value):
    """One block. Raises ValueError if it is none."""

    block: bytes
    type: bytes
    size: int

    @classmethod
    def parse(cls, block: bytes) -> _Header:
        if len(block) != BLOCK:
            raise ValueError("cut off")
        if block.startswith(b"\x1f\x8b"):
            raise ValueError("compressed, `zcat` makes a tar of it; found")
        checked = octal(block[148:156])
        if checked != sum(block) - sum(block[148:156]) + 8 * 32:
            raise ValueError("a header with a wrong checksum")
        if block[257:263] not in (b"ustar\0", b"ustar "):
            raise ValueError("no header of GNU tar or pax")
        return cls(block, block[156:157], number(block[124:136]))

    @property
    def gnu(self) -> bool:
        return self.block[257:265] == b"ustar  \0"


class _Reader:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._described = 0
        self._regions = 0
        self.position = 0

    def next(self) -> Member | None:
        """The next member; None at the end. Raises ValueError."""
        extra = _Extra(map=self._map())
        while True:
            block = self._source.read(self.position, BLOCK)
            if not any(block) and len(block) == BLOCK:
                self._end(extra)
                return None
            header = _Header.parse(block)
            start = self.position + BLOCK
            if header.type not in (b"x", b"L", b"K"):
                return self._member(header, extra, start)
            self._describe(header, extra, self._data(start, header.size))
            self.position = start + _padded(header.size)

    def _end(self, extra: _Extra) -> None:
        """Two blocks of zeros, and nothing else after them."""
        if extra != _Extra():
            raise ValueError("an extended header without a member")
        if self._source.size is None:
            return
        left = self._source.size - self.position
        if not 2 * BLOCK <= left <= _PADDING:
            raise ValueError("cut off" if left < 2 * BLOCK else "something after the end")
        if any(self._source.read(self.position, left)):
            raise ValueError("something after the end")

    def _data(self, start: int, size: int) -> bytes:
        if size > RECORDS:
            raise ValueError(f"a header of {size} bytes")
        data = self._source.read(start, size)
        if len(data) != size:
            raise ValueError("cut off")
        self._described += size
        if self._described > ALL_RECORDS:
            raise ValueError("too many extended headers")
        return data

    def _describe(self, header: _Header, extra: _Extra, data: bytes) -> None:
        if header.type == b"L" and extra.path is None:
            extra.path = _text(data)
        elif header.type == b"K" and extra.target is None:
            extra.target = _text(data)
        elif header.type == b"x" and not extra.records:
            _add_records(extra, data)
        else:
            raise ValueError("two headers for one thing")

    def _member(self, header: _Header, extra: _Extra, start: int) -> Member:
        block, records = header.block, extra.records
        regions: Regions | None = None
        fields = _USTAR.unpack(block)
        stored = _record(records, b"size", header.size)
        size, old = stored, header.type == b"S"
        kind = Kind.FILE if header.type in (b"\0", b"7", b"S") else _kind(header.type)
        if kind is not Kind.FILE and stored:
            raise ValueError(f"{stored} bytes of data for what is no file")
        self.position = start + _padded(stored)
        if old:
            size, regions, start = self._old_map(header, start)
            self.position = start + _padded(stored)
        elif any(key.startswith(_SPARSE) for key in records):
            if kind is not Kind.FILE:
                raise ValueError("a map of what is no file")
            size, regions, skipped = self._pax_map(extra, start, stored)
            start, stored = start + skipped, stored - skipped
        if self._source.size is not None and self.position > self._source.size:
            raise ValueError("cut off")
        if extra.map.numbers and regions is not extra.map:
            raise ValueError("a map of what is no sparse file")
        if regions is not None:
            regions.check(size, stored)
            self._regions += len(regions)
        path = records.get(_SPARSE + b"name") or records.get(b"path") or extra.path
        target = records.get(b"linkpath") or extra.target or _text(fields[8])
        return Member(
            kind=kind,
            path=inner_path(path or _name(header), folder=kind is Kind.FOLDER),
            target=_target(kind, target),
            mode=octal(fields[1]) & 0o7777,
            uid=owner(_record(records, b"uid", number(fields[2]))),
            gid=owner(_record(records, b"gid", number(fields[3]))),
            mtime=time(records.get(b"mtime") or b"%d" % number(fields[5])),
            size=size,
            start=start,
            regions=regions,
            device=_device(kind, fields),
            xattrs=_xattrs(records),
        )

    def _old_map(self, header: _Header, start: int) -> tuple[int, Regions, int]:
        """The map of GNU's own format, which continues in blocks before the data."""
        if not header.gnu:
            raise ValueError("a sparse file in a foreign header")
        regions, more = self._map(), header.block[482]
        regions.add(old_entries(header.block, 386, 4))
        while more:
            block = self._data(start, BLOCK)
            start += BLOCK
            regions.add(old_entries(block, 0, 21))
            more = block[504]
        return number(header.block[483:495]), regions, start

    def _map(self) -> Regions:
        """An empty map, for as many regions as the archive may still have."""
        return Regions(most=MOST - self._regions)

    def _pax_map(self, extra: _Extra, start: int, stored: int) -> tuple[int, Regions, int]:
        """The file's size, its regions, and how much of the stored data is their map."""
        records = extra.records
        version = (records.get(_SPARSE + b"major"), records.get(_SPARSE + b"minor"))
        if version == (b"1", b"0"):
            regions, skipped = self._map_in_data(start, stored)
            return _record(records, _SPARSE + b"realsize"), regions, skipped
        if version not in ((None, None), (b"0", b"0"), (b"0", b"1")):
            raise ValueError("a sparse file of unknown format")
        if _SPARSE + b"map" in records:
            if extra.map.numbers:
                raise ValueError("two maps of a sparse file")
            extra.map.add(listed(records[_SPARSE + b"map"], b","))
        regions = extra.map
        regions.check_whole()
        if _record(records, _SPARSE + b"numblocks", len(regions)) != len(regions):
            raise ValueError("another number of regions than there are")
        return _record(records, _SPARSE + b"size"), regions, 0

    def _map_in_data(self, start: int, stored: int) -> tuple[Regions, int]:
        """Format 1.0, in blocks before the data: how many regions, then two numbers for each."""
        regions, wanted = self._map(), -1
        text, position = b"", 0
        while True:
            *lines, text = text.split(b"\n")
            if lines and wanted < 0:
                wanted = 2 * decimal(lines.pop(0))
            found = lines[: max(wanted, 0)]
            regions.add(map(decimal, found))
            wanted -= len(found)
            if not wanted:
                return regions, position
            if len(text) > _LINE:
                raise ValueError(f"{text[:_LINE]!r} is no number")
            if position >= stored:
                raise ValueError("a bad map of a sparse file")
            text += self._data(start + position, BLOCK)
            position += BLOCK


def _add_records(extra: _Extra, data: bytes) -> None:
    """The records of a pax header, each "LENGTH KEY=VALUE\\n"; values may hold any byte."""
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        end = position + decimal(data[position : max(space, position)])
        equals = data.find(b"=", space + 1, end)
        if equals < 0 or end > len(data) or data[end - 1] != 0x0A:
            raise ValueError("a bad record in an extended header")
        key, value = data[space + 1 : equals], data[equals + 1 : end - 1]
        position = end
        if key in (_SPARSE + b"offset", _SPARSE + b"numbytes"):
            if extra.map.numbers % 2 != (key == _SPARSE + b"numbytes"):
                raise ValueError("a bad map of a sparse file")
            extra.map.add((decimal(value),))
        elif key in extra.records:
            raise ValueError(f"two records {key[:40]!r}")
        elif key in _KNOWN or key.startswith(_XATTR):
            extra.records[key] = value
            if len(extra.records) > len(_KNOWN) + _MOST_ATTRIBUTES:
                raise ValueError("too many extended attributes")
        else:
            raise ValueError(f"an unknown record {key[:40]!r}")
    if not data:
        raise ValueError("an empty extended header")


def _kind(letter: bytes) -> Kind:
    try:
        return Kind(letter)
    except ValueError:
        raise ValueError(f"a member of unknown type {letter!r}") from None


def _name(header: _Header) -> bytes:
    name, prefix = _text(header.block[:100]), _text(header.block[345:500])
    return prefix + b"/" + name if prefix and not header.gnu else name


def _target(kind: Kind, target: bytes) -> bytes:
    if kind is Kind.LINK:
        return inner_path(target)
    if kind is Kind.SYMLINK and (not target or len(target) > PATH or b"\0" in target):
        raise ValueError("a symlink to nothing")
    return target if kind is Kind.SYMLINK else b""


def _device(kind: Kind, fields: tuple[bytes, ...]) -> tuple[int, int]:
    if kind not in (Kind.CHARACTERS, Kind.BLOCKS):
        return 0, 0
    return octal(fields[12]), octal(fields[13])


def _xattrs(records: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """GNU tar writes "=" in a name as %3D, and "%" as %25."""
    found = []
    for key, value in records.items():
        if key.startswith(_XATTR):
            name = key[len(_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
            if not name or len(name) > COMPONENT or b"\0" in name or len(value) > 1 << 16:
                raise ValueError("a bad extended attribute")
            found.append((name, value))
    if len(found) > _MOST_ATTRIBUTES:
        raise ValueError("too many extended attributes")
    return tuple(found)


def _record(records: dict[bytes, bytes], key: bytes, default: int | None = None) -> int:
    if key in records:
        return decimal(records[key])
    if default is None:
        raise ValueError(f"no record {key!r}")
    return default


def _text(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
