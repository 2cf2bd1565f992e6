"""What lies where in the cache: chunks, by their digests, and which snapshot has which.

    FOLDER/.segments/00000    the chunks' bytes
    FOLDER/.snapshots/KEY     which of them a snapshot has: records.py

A chunk is the data of one extent. Those of equal bytes are one chunk, whoever has them: digests are
made here, of what was read, and never believed. A chunk goes when the last snapshot that has it
does, and the snapshot that was not used for the longest time goes first, but none that is being
copied. A snapshot is in the cache when its record is: as a whole, or not at all.

Any thread may call anything.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shim import budget, log
from shim.cache import records
from shim.cache.records import Record
from shim.cache.segments import GRAIN, SEGMENT, Segment
from shim.errors import FailedPrecondition, NotFound, StoreFull

HUGE = 2 << 20  # bytes of a huge page
_RESERVE = 1 << 30  # bytes of memory that others of the node are left
_MOST_SEGMENTS = 1 << 16  # as many as extents can count
_LARGER = "cache.size is what it may take"


@dataclass(slots=True)
class Chunk:
    """Bytes that some snapshots have. `users` counts every extent of theirs."""

    segment: int
    place: int
    length: int
    checksum: int  # CRC-32C
    users: int = 0


@dataclass
class Held:
    """A snapshot that is in the cache."""

    record: Record
    used: float  # Unix time
    users: int = 0  # copies that are under way


class Account(NamedTuple):
    """What one snapshot has: bytes of its extents, and of what nobody else has."""

    key: str
    path: str
    size: int
    own: int
    used: float  # Unix time
    busy: bool


class Accounts(NamedTuple):
    """What there is, in bytes."""

    limit: int
    held: int  # by segments: memory that is gone for others
    used: int  # by chunks
    pinned: int  # of what is held
    snapshots: list[Account]


class Store:
    """The cache's contents. `size`: bytes that it may take; what is made of them is `limit`.

    `pin` gets every segment that is made; `free` tells how many bytes of memory are left.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        *,
        segment: int = SEGMENT,
        pin: Callable[[Segment], None] = lambda _: None,
        free: Callable[[], int] = budget.available,
    ) -> None:
        self.segment_size = max(HUGE, min(segment, size // HUGE * HUGE))
        self.segments_folder = folder / ".segments"
        self.records_folder = folder / ".snapshots"
        self.segments: dict[int, Segment] = {}
        self.chunks: dict[bytes, Chunk] = {}
        self.held: dict[str, Held] = {}
        self.lock = threading.RLock()  # of all that is above
        self._most = min(size // self.segment_size, _MOST_SEGMENTS)
        self._growing = threading.Lock()
        self._pin = pin
        self._free = free
        for path in (self.segments_folder, self.records_folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def limit(self) -> int:
        """Bytes that it may take."""
        return self._most * self.segment_size

    def has(self, key: str) -> bool:
        """Whether that snapshot is here."""
        with self.lock:
            return key in self.held

    @contextmanager
    def using(self, key: str) -> Iterator[Record | None]:
        """A block in which a snapshot stays where it is; None if it is not here."""
        with self.lock:
            held = self.held.get(key)
            if held is not None:
                held.users += 1
                held.used = time.time()
        if held is None:
            yield None
            return
        try:
            with suppress(OSError):  # for who comes after us
                os.utime(self.records_folder / key)
            yield held.record
        finally:
            with self.lock:
                held.users -= 1

    def memory(self, record: Record) -> list[memoryview]:
        """The bytes of the segments that a snapshot in use has something in, by number."""
        wanted = record.segments
        none = memoryview(b"")
        with self.lock:
            return [
                self.segments[number].memory if number in wanted else none
                for number in range(max(wanted, default=-1) + 1)
            ]

    def drop(self, key: str) -> None:
        """Forget a snapshot. Raises NotFound, and FailedPrecondition while it is copied."""
        with self.lock:
            held = self.held.get(key)
            if held is None:
                raise NotFound("the cache has no such snapshot", hint="see `thaw cache`")
            if held.users:
                raise FailedPrecondition(
                    f"{held.record.path} is being copied from the cache", hint="try again"
                )
            self._forget(held)
        self.release()

    def release(self) -> None:
        """Give back the memory of segments in which there is nothing."""
        with self.lock:
            empty = [segment for segment in self.segments.values() if segment.free.whole]
            for segment in empty:
                del self.segments[segment.number]
                segment.path.unlink(missing_ok=True)  # its number is free
        for segment in empty:  # nobody has to wait for that
            segment.close()

    def pin_rest(self) -> None:
        """Pin what is not pinned, up to the first segment with which that fails again.

        The driver may have come later than we. Nobody gets anything while it is asked.
        """
        with self.lock:
            numbers = list(self.segments)
        for number in numbers:
            with self.lock:
                segment = self.segments.get(number)
                if segment is not None and segment.unpin is None:
                    self._pin(segment)
                    if segment.unpin is None:
                        return

    def shrink(self) -> None:
        """Let snapshots go until the limit is kept, which may have been another one before."""
        self.release()
        while len(self.segments) > self._most:
            with self.lock:
                self._evict(0.0)
            self.release()

    def accounts(self) -> Accounts:
        """What there is, the snapshots by when they were used, the last one first."""
        with self.lock:
            last_first = sorted(self.held.values(), key=lambda held: -held.used)
            return Accounts(
                self.limit,
                sum(segment.size for segment in self.segments.values()),
                sum(chunk.length for chunk in self.chunks.values()),
                sum(segment.size for segment in self.segments.values() if segment.unpin),
                [self._account(held) for held in last_first],
            )

    def adopt(self, record: Record, used: float) -> None:
        """Take a snapshot up whose bytes are here already. Raises ValueError if that cannot be."""
        wanted = zip(record.names, records.listed(record.extents), strict=True)
        with self.lock:
            made: list[bytes] = []
            try:
                for name, extent in wanted:
                    found = self.chunks.get(name)
                    if found is None:
                        new = Chunk(*extent)
                        self._claim(new)
                        self.chunks[name] = new
                        made.append(name)
                    elif (found.segment, found.place, found.length) != extent[:3]:
                        raise ValueError("it has what others have somewhere else")
            except ValueError:
                for name in made:
                    self._free_chunk(self.chunks.pop(name))
                raise
            for name in record.names:
                self.chunks[name].users += 1
            self.held[record.key] = Held(record, used)

    def close(self) -> None:
        """Let go of the mappings; the files stay for who comes after us."""
        with self.lock:
            for segment in self.segments.values():
                segment.close()
            self.segments.clear()

    # What a draft does: intake.py.

    def room(self, length: int, idle: float) -> tuple[Segment, int]:
        """A place for so many bytes, for which snapshots may have to go. Raises StoreFull.

        Only such go as were not used for `idle` seconds.
        """
        rounded = -(-length // GRAIN) * GRAIN
        if rounded > self.segment_size:
            raise StoreFull(f"no room in the cache for {length} bytes together", hint=_LARGER)
        may_grow = True
        while True:
            with self.lock:
                for segment in self.segments.values():
                    place = segment.free.take(rounded)
                    if place is not None:
                        return segment, place
                count = len(self.segments)
                grows = may_grow and count < self._most
                if not grows or self._free() < self.segment_size + _RESERVE:
                    self._evict(idle)
                    continue
            may_grow = self._grow(count)

    def settle(self, name: bytes, chunk: Chunk) -> Chunk:
        """Bytes that have come in: they stay where they are, unless they are somewhere already."""
        with self.lock:
            found = self.chunks.setdefault(name, chunk)
            if found is not chunk:
                self._free_chunk(chunk)
            found.users += 1
            return found

    def unsettle(self, name: bytes) -> None:
        """One user less."""
        with self.lock:
            chunk = self.chunks[name]
            chunk.users -= 1
            if not chunk.users:
                self._free_chunk(self.chunks.pop(name))

    def give(self, segment: Segment, place: int, length: int) -> None:
        """A place that nothing came into."""
        with self.lock:
            segment.free.give(place, -(-length // GRAIN) * GRAIN)

    def publish(self, record: Record) -> bool:
        """All chunks have been settled; False if the snapshot is here already. Raises OSError."""
        path = self.records_folder / record.key
        with self.lock:
            if record.key in self.held:
                return False
            draft = path.with_suffix(".draft")
            try:
                draft.write_bytes(records.dump(record))
                draft.rename(path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            self.held[record.key] = Held(record, time.time())
            return True

    # With the lock held.

    def _claim(self, chunk: Chunk) -> None:
        segment = self.segments.get(chunk.segment)
        if segment is None:
            raise ValueError("a segment is missing")
        if chunk.place % GRAIN:
            raise ValueError("a chunk lies where none can be")
        segment.free.claim(chunk.place, -(-chunk.length // GRAIN) * GRAIN)

    def _free_chunk(self, chunk: Chunk) -> None:
        rounded = -(-chunk.length // GRAIN) * GRAIN
        self.segments[chunk.segment].free.give(chunk.place, rounded)

    def _evict(self, idle: float) -> None:
        before = time.time() - idle
        can = [held for held in self.held.values() if not held.users and held.used <= before]
        if not can:
            why = "what is in the cache is in use" if self.held else "there is no memory for it"
            raise StoreFull(f"no room in the cache: {why}", hint=_LARGER)
        held = min(can, key=lambda held: held.used)
        log.info("the cache lets a snapshot go", path=held.record.path, bytes=held.record.bytes)
        self._forget(held)

    def _forget(self, held: Held) -> None:
        del self.held[held.record.key]
        (self.records_folder / held.record.key).unlink(missing_ok=True)
        for name in held.record.names:
            self.unsettle(name)

    def _account(self, held: Held) -> Account:
        record = held.record
        mine = Counter(record.names)
        own = sum(
            self.chunks[name].length
            for name, count in mine.items()
            if self.chunks[name].users == count
        )
        return Account(record.key, str(record.path), record.bytes, own, held.used, bool(held.users))

    # Without it: to find a gigabyte of memory takes a while, and restores may want something.

    def _grow(self, seen: int) -> bool:
        """Whether it has; `seen` segments were too few."""
        with self._growing:
            with self.lock:
                if len(self.segments) != seen:
                    return True  # somebody else has, or there is room now
                number = next(n for n in range(_MOST_SEGMENTS) if n not in self.segments)
            try:
                path = self.segments_folder / f"{number:05d}"
                segment = Segment.make(path, number, self.segment_size)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                    raise
                log.warning("there is no memory for the cache to grow", segments=seen)
                return False
            self._pin(segment)
            with self.lock:
                self.segments[number] = segment
            return True
