"""Two snapshots side by side: the pages of their memory, and the files of their archives.

Extents that begin at the same address and have the same length and checksum count as equal unread.
All else is read from both and compared page by page.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from shim.errors import Damaged
from shim.snapshot.archive import Archive
from shim.snapshot.config import DAMAGED
from shim.snapshot.images import PAGE
from shim.snapshot.inspection import Inspection, Mapping
from shim.snapshot.pagemap import Piece
from shim.snapshot.parts import Parts
from shim.snapshot.pieces import PIECE, Pieces, name_of
from shim.snapshot.resident import PRIVATE, Contents, Space
from shim.snapshot.tar import Kind, Member, members
from shim.snapshot.tree import open_file

_CHUNK = 4 << 20  # bytes that are read at once
EQUAL, DIFFERENT, FIRST, SECOND = "equal", "different", "first", "second"

Range = tuple[int, int]
Tell = Callable[[int], None]  # of bytes that were compared


@dataclass
class Difference:
    """Bytes of one mapping, or of what is in none: equal, different, and in one of both only."""

    process: str
    kind: str
    what: str
    bytes: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys((EQUAL, DIFFERENT, FIRST, SECOND), 0)
    )

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        return any(count for state, count in self.bytes.items() if state != EQUAL)


@dataclass(frozen=True)
class Change:
    """A member of an archive that the other one does not have so."""

    path: str
    how: str  # "added", "removed" or "changed"
    what: str  # of a changed one: what differs


class Pages:
    """The bytes of a snapshot's pages files, wherever their pieces lie; a context manager."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._pieces = Pieces(folders)
        self._fds: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def read(self, file: str, offset: int, length: int) -> bytes:
        """So many bytes of one of CRIU's pages files. Raises Damaged."""
        data = b""
        while len(data) < length:
            at = offset + len(data)
            whole = self._whole(file)
            wanted, start = (file, at) if whole else (name_of(file, at // PIECE), at % PIECE)
            most = length - len(data) if whole else min(length - len(data), PIECE - start)
            found = os.pread(self._open(wanted), most, start)
            if not found:
                raise Damaged(f"{wanted} ends before byte {start}", hint=DAMAGED)
            data += found
        return data

    def _whole(self, file: str) -> bool:
        return file in self._fds or any(os.path.lexists(f / file) for f in self._pieces.folders)

    def _open(self, wanted: str) -> int:
        if wanted not in self._fds:
            path = self._pieces.path(wanted)
            try:
                self._fds[wanted] = open_file(path)
            except OSError as error:
                raise Damaged(f"cannot read {path}: {error.strerror}", hint=DAMAGED) from error
        return self._fds[wanted]


@dataclass(frozen=True)
class Side:
    """One of the two: what was found in it, and its pages."""

    found: Inspection
    pages: Pages


def memory(first: Side, second: Side, tell: Tell = lambda _: None) -> list[Difference]:
    """What differs in memory, mapping by mapping, those without any difference too.

    Processes are matched by their pids, shared objects by where they are first mapped.
    """
    differences: list[Difference] = []
    for ours, theirs in _pairs(first.found, second.found):
        places = _Places(first.found, second.found, ours, theirs)
        nothing = Contents()
        pair = (
            first.found.spaces.get(ours, nothing) if ours else nothing,
            second.found.spaces.get(theirs, nothing) if theirs else nothing,
        )
        for start, end, state in _compared(pair, (first.pages, second.pages), tell):
            places.add(start, end, state)
        differences += places.differences
    return differences


def bytes_in_both(first: Inspection, second: Inspection) -> int:
    """How much `memory` has to compare at most."""
    return sum(
        first.spaces[ours].resident.total
        for ours, theirs in _pairs(first, second)
        if ours in first.spaces and theirs in second.spaces
    )


def _pairs(first: Inspection, second: Inspection) -> Iterator[tuple[Space | None, Space | None]]:
    ours, theirs = _keyed(first), _keyed(second)
    for key in sorted(ours.keys() | theirs.keys()):
        yield ours.get(key), theirs.get(key)


def _keyed(found: Inspection) -> dict[tuple[int, int], Space]:
    """The address spaces by what they have in another snapshot of the worker, too."""
    keyed: dict[tuple[int, int], Space] = {}
    seen = set()
    for process in found.processes:
        for mapping in process.mappings:
            if mapping.space in seen:
                continue
            seen.add(mapping.space)
            private = mapping.space.kind == PRIVATE
            keyed[process.pid, -1 if private else mapping.start] = mapping.space
    return keyed


class _Places:
    """The mappings to which addresses belong: the first snapshot's, or else the second's.

    One that begins at the same place in both is one, as long as the longer of them.
    """

    def __init__(
        self, first: Inspection, second: Inspection, ours: Space | None, theirs: Space | None
    ) -> None:
        places: dict[int, tuple[int, Difference]] = {}
        for found, space in ((first, ours), (second, theirs)):
            for process in found.processes:
                for m in process.mappings:
                    start = m.start if m.space.kind == PRIVATE else m.offset
                    if m.space != space:
                        continue
                    end = start + m.end - m.start
                    if start in places:
                        until, made = places[start]
                        places[start] = max(end, until), made
                        continue
                    made = Difference(f"{process.pid} {process.name}", m.kind, _what(m))
                    places[start] = end, made
        self._places = [(start, end, made) for start, (end, made) in sorted(places.items())]
        self._starts = [start for start, _, _ in self._places]
        self._outside = Difference("-", (ours or theirs or Space("", 0)).kind, "not mapped")

    @property
    def differences(self) -> list[Difference]:
        rest = [self._outside] if self._outside.differs else []
        return [difference for _, _, difference in self._places] + rest

    def add(self, start: int, end: int, state: str) -> None:
        while start < end:
            place = bisect_right(self._starts, start) - 1
            here, until = self._outside, end
            if place >= 0 and start < self._places[place][1]:
                here, until = self._places[place][2], min(end, self._places[place][1])
            if place + 1 < len(self._starts):
                until = min(until, self._starts[place + 1])
            here.bytes[state] += until - start
            start = until


def _what(mapping: Mapping) -> str:
    return f"{mapping.start:x}-{mapping.end:x} {mapping.protection} {mapping.name}".rstrip()


def _compared(
    pair: tuple[Contents, Contents], pages: tuple[Pages, Pages], tell: Tell
) -> Iterator[tuple[int, int, str]]:
    """The two address spaces in stretches, each with its state."""
    ours, theirs = ({(e.start, e.length, e.checksum) for e in c.extents} for c in pair)
    same = sorted((start, start + length) for start, length, _ in ours & theirs)
    starts = [start for start, _ in same]
    for start, end, here, there in _both(pair[0].pieces, pair[1].pieces):
        if here is None or there is None:
            yield start, end, SECOND if here is None else FIRST
            continue
        for low, high, equal in _cut(start, end, same, starts):
            if equal:
                tell(high - low)
                yield low, high, EQUAL
                continue
            for at in range(low, high, _CHUNK):
                size = min(_CHUNK, high - at)
                first = pages[0].read(pair[0].pages, here + at - start, size)
                second = pages[1].read(pair[1].pages, there + at - start, size)
                tell(size)
                yield from _states(at, first, second)


def _both(
    ours: Sequence[Piece], theirs: Sequence[Piece]
) -> Iterator[tuple[int, int, int | None, int | None]]:
    """Stretches that are in one or both: start, end, and the offset in each one's file."""
    position = i = j = 0
    while i < len(ours) or j < len(theirs):
        a = ours[i] if i < len(ours) else None
        b = theirs[j] if j < len(theirs) else None
        begins = [max(piece[0], position) for piece in (a, b) if piece is not None]
        start = min(begins)
        stops = []
        offsets: list[int | None] = []
        for piece in (a, b):
            inside = piece is not None and piece[0] <= start
            offsets.append(piece[1] + start - piece[0] if piece is not None and inside else None)
            if piece is not None:
                stops.append(piece[0] + piece[2] if inside else piece[0])
        position = min(stops)
        yield start, position, offsets[0], offsets[1]
        i += a is not None and a[0] + a[2] <= position
        j += b is not None and b[0] + b[2] <= position


def _cut(
    start: int, end: int, same: Sequence[Range], starts: Sequence[int]
) -> Iterator[tuple[int, int, bool]]:
    """A stretch in parts: those that lie in one of the equal ranges, and those that do not."""
    place = max(0, bisect_right(starts, start) - 1)
    while start < end:
        while place < len(same) and same[place][1] <= start:
            place += 1
        low, high = same[place] if place < len(same) else (end, end)
        if low <= start:
            until, equal = min(high, end), True
        else:
            until, equal = min(low, end), False
        yield start, until, equal
        start = until


def _states(at: int, first: bytes, second: bytes) -> Iterator[tuple[int, int, str]]:
    if first == second:
        yield at, at + len(first), EQUAL
        return
    for place in range(0, len(first), PAGE):
        end = place + PAGE
        equal = first[place:end] == second[place:end]
        yield at + place, at + end, EQUAL if equal else DIFFERENT


def archives(first: Archive | None, second: Archive | None) -> list[Change]:
    """What differs in two archives, by path; None is an empty one. Raises Unfit."""
    ours, theirs = _members(first), _members(second)
    changes = []
    for path in sorted(ours.keys() | theirs.keys()):
        shown = os.fsdecode(path) or "."
        if path not in ours:
            changes.append(Change(shown, "added", ""))
        elif path not in theirs:
            changes.append(Change(shown, "removed", ""))
        elif first is not None and second is not None:
            what = _differences((first, ours[path]), (second, theirs[path]))
            if what:
                changes.append(Change(shown, "changed", what))
    return changes


def _members(archive: Archive | None) -> dict[bytes, Member]:
    if archive is None:
        return {}
    with Parts(archive.base) as parts:
        return {member.path: member for member in members(parts, str(archive.base))}


def _differences(first: tuple[Archive, Member], second: tuple[Archive, Member]) -> str:
    a, b = first[1], second[1]
    if a.kind != b.kind:
        return f"{a.kind.name.lower()} → {b.kind.name.lower()}"
    found = [
        f"{word} {was} → {is_}"
        for word, was, is_ in (
            ("size", a.size, b.size),
            ("mode", f"{a.mode:04o}", f"{b.mode:04o}"),
            ("owner", f"{a.uid}:{a.gid}", f"{b.uid}:{b.gid}"),
            ("target", os.fsdecode(a.target), os.fsdecode(b.target)),
            ("device", a.device, b.device),
        )
        if was != is_
    ]
    if a.xattrs != b.xattrs:
        found.append("extended attributes")
    if a.kind == Kind.FILE and a.size == b.size and _contents_differ(first, second):
        found.append("contents")
    return ", ".join(found)


def _contents_differ(first: tuple[Archive, Member], second: tuple[Archive, Member]) -> bool:
    """Holes in other places count as other contents: nobody reads all to see that it is zero."""
    a, b = first[1], second[1]
    if a.regions != b.regions:
        return True
    stored = a.size if a.regions is None else sum(length for _, length in a.regions)
    with Parts(first[0].base) as ours, Parts(second[0].base) as theirs:
        for at in range(0, stored, _CHUNK):
            size = min(_CHUNK, stored - at)
            if ours.read(a.start + at, size) != theirs.read(b.start + at, size):
                return True
    return False


def listed(changes: Iterable[Change]) -> dict[str, int]:
    """How many changes there are of each sort."""
    counts = dict.fromkeys(("added", "removed", "changed"), 0)
    for change in changes:
        counts[change.how] += 1
    return counts
