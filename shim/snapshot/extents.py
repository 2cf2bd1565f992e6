"""The extents of an index: whether a list of them can be right, before anything is done with it.

There may be 100,000 of them, and they are checked while a pod waits: so in columns, by what
Python does at the speed of C.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain, compress, count, groupby, islice, pairwise, repeat
from operator import add, le, ne, or_, sub, xor
from typing import NamedTuple

from shim.proto import criu_pb as pb
from shim.snapshot.images import PAGE, TOP, anonymous, fillable
from shim.snapshot.layout import ANONYMOUS
from shim.snapshot.pieces import dealt

SIZE = 32  # bytes of struct thaw_extent
_TASK, _SOURCE = 0xFFFF_FFFF, 0xFFFF  # in an owner
_BLOCK = 4 << 20  # none crosses a multiple of it in memory

Range = tuple[int, int]  # addresses


class Columns(NamedTuple):
    """The fields of all extents (struct thaw_extent), each in a list of its own."""

    addresses: list[int]
    ends: list[int]  # addresses, too
    offsets: list[int]
    lengths: list[int]
    sources: list[int]
    owners: list[int]  # task, source and flags in one number, to be compared at once

    @classmethod
    def of(cls, records: bytes) -> Columns:
        """The columns of an array of extents."""
        words, halves, quarters = array("Q", records), array("I", records), array("H", records)
        addresses, lengths = words[0::4].tolist(), halves[4::8].tolist()
        return cls(
            addresses=addresses,
            ends=list(map(add, addresses, lengths)),
            offsets=words[1::4].tolist(),
            lengths=lengths,
            sources=quarters[14::16].tolist(),
            owners=words[3::4].tolist(),
        )


def renumbered(records: bytes) -> tuple[bytes, list[int], list[int]]:
    """The extents with tasks and sources counted without gaps, and which these were."""
    halves, quarters = array("I", records), array("H", records)
    tasks, sources = sorted(set(halves[6::8])), sorted(set(quarters[14::16]))
    new_tasks = {old: new for new, old in enumerate(tasks)}
    new_sources = {old: new for new, old in enumerate(sources)}
    quarters[14::16] = array("H", map(new_sources.__getitem__, quarters[14::16]))
    halves = array("I", quarters.tobytes())
    halves[6::8] = array("I", map(new_tasks.__getitem__, halves[6::8]))
    return halves.tobytes(), tasks, sources


def interleaved(records: bytes, disks: Sequence[object]) -> bytes:
    """The extents in another order: about 4 MiB from every disk in turn.

    Threads that take extents in this order keep all disks busy; each is read in the order of
    before. Two disks that gave 200 MiB/s each gave 400 so, and 210 one piece after another.
    """
    if len(set(disks)) < 2:
        return records
    owners = [disks[source] for source in array("H", records)[14::16]]
    turns = dealt(array("I", records)[4::8], owners, _BLOCK)
    return b"".join([records[turn.start * SIZE : turn.stop * SIZE] for turn in turns])


def parted(records: bytes, areas: Mapping[int, Sequence[Range]]) -> tuple[bytes, bytes]:
    """The extents that begin in some areas, and the others, both in the order of before.

    `areas` are those of tasks, by number; each task's are in order and do not overlap.
    """
    bounds = {task: [*chain.from_iterable(ranges)] for task, ranges in areas.items()}
    addresses, tasks = array("Q", records)[0::4], array("I", records)[6::8]
    # Behind an odd number of bounds is inside.
    inside = [
        bisect_right(bounds.get(task, ()), address) % 2 == 1
        for task, address in zip(tasks, addresses, strict=True)
    ]
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    at = 0
    for wanted, run in groupby(inside):
        end = at + sum(1 for _ in run)
        parts[not wanted].append(records[at * SIZE : end * SIZE])
        at = end
    return b"".join(parts[0]), b"".join(parts[1])


def check(
    columns: Columns, sizes: Sequence[int], vmas: Sequence[Sequence[pb.Vma]]
) -> list[list[Range]]:
    """Where extents lie in each task, adjoining ones as one, by address.

    `sizes` are those of the sources, in bytes, and `vmas` the tasks' mappings, by address. Raises
    ValueError if an extent cannot be right.
    """
    if not columns.lengths:
        return [[] for _ in vmas]
    _check_numbers(columns, len(vmas), len(sizes))
    _check_sources(columns, sizes)
    return _ranges(columns, vmas)


def check_regions(columns: Columns, sizes: Sequence[int], regions: Sequence[int]) -> None:
    """The same for extents of GPU memory: their tasks are regions of these sizes, in bytes, and
    their addresses places in there. Raises ValueError.
    """
    if not columns.lengths:
        return
    _check_numbers(columns, len(regions), len(sizes))
    _check_sources(columns, sizes)
    if any(end > regions[task] for task, _, _, end in _joined(columns)):
        raise ValueError("an extent ends outside its region")


def _check_numbers(columns: Columns, tasks: int, sources: int) -> None:
    addresses, offsets, lengths = columns.addresses, columns.offsets, columns.lengths
    for owner in set(columns.owners):
        if owner & _TASK >= tasks or owner >> 32 & _SOURCE >= sources:
            raise ValueError("an extent is of a task or a file that is not listed")
        if owner >> 48 not in (0, ANONYMOUS):
            raise ValueError("an extent has flags that are unknown")
    if any(reduce(or_, numbers) % PAGE for numbers in (addresses, offsets, lengths)):
        raise ValueError("an extent is not made of whole pages")
    if min(lengths) == 0 or max(addresses) >= TOP or max(offsets) >= TOP:
        raise ValueError("an extent is empty, or lies where nothing can be")
    if max(map(xor, addresses, map(sub, columns.ends, repeat(PAGE)))) >= _BLOCK:
        raise ValueError(f"an extent crosses a multiple of {_BLOCK} bytes")


def _check_sources(columns: Columns, sizes: Sequence[int]) -> None:
    sources, offsets = columns.sources, columns.offsets
    if not all(map(le, sources, islice(sources, 1, None))):
        raise ValueError("the extents are out of order")
    for number in sorted(set(sources)):
        here = slice(bisect_left(sources, number), bisect_right(sources, number))
        starts, ends = offsets[here], list(map(add, offsets[here], columns.lengths[here]))
        if not all(map(le, ends, islice(starts, 1, None))):
            raise ValueError("extents overlap in their file, or are out of order")
        if ends[-1] > sizes[number]:
            raise ValueError("an extent ends outside its file")


def _ranges(columns: Columns, vmas: Sequence[Sequence[pb.Vma]]) -> list[list[Range]]:
    ranges: list[list[Range]] = [[] for _ in vmas]
    mapped = [_Mapped(of_task) for of_task in vmas]
    for task, flag, start, end in _joined(columns):
        if not mapped[task].holds(start, end, flag):
            raise ValueError(f"an extent at {start:#x} is outside what can be filled there")
        joins = ranges[task] and ranges[task][-1][1] == start
        ranges[task].append((ranges[task].pop()[0] if joins else start, end))
    return ranges


def _joined(columns: Columns) -> Iterator[tuple[int, int, int, int]]:
    """Task, flags, first and last address of memory, by task and address."""
    spans = sorted(_as_listed(columns))
    for (task, _, end, _), (next_task, start, _, _) in pairwise(spans):
        if task == next_task and start < end:
            raise ValueError(f"extents overlap at {start:#x}")
    for task, start, end, flag in spans:
        yield task, flag, start, end


def _as_listed(columns: Columns) -> Iterator[tuple[int, int, int, int]]:
    """Task, first and last address, and flags, of extents that follow each other as one."""
    addresses, ends, owners = columns.addresses, columns.ends, columns.owners
    gaps = map(ne, ends, islice(addresses, 1, None))
    others = map(ne, owners, islice(owners, 1, None))
    first = 0
    for last in [*compress(count(), map(or_, gaps, others)), len(ends) - 1]:
        yield owners[first] & _TASK, addresses[first], ends[last], owners[first] >> 48
        first = last + 1


class _Mapped:
    """Where the memory of a task can be filled, and where what is not filled is zero."""

    def __init__(self, vmas: Sequence[pb.Vma]) -> None:
        self._any = _united(vma for vma in vmas if fillable(vma))
        self._anonymous = _united(vma for vma in vmas if fillable(vma) and anonymous(vma))

    def holds(self, start: int, end: int, flag: int) -> bool:
        """Whether extents with these flags may lie there."""
        ranges = self._anonymous if flag & ANONYMOUS else self._any
        place = bisect_right(ranges, (start, TOP)) - 1
        return place >= 0 and end <= ranges[place][1]


def _united(vmas: Iterable[pb.Vma]) -> list[Range]:
    ranges: list[Range] = []
    for vma in vmas:
        if ranges and ranges[-1][1] == vma.start:
            ranges[-1] = (ranges[-1][0], vma.end)
        else:
            ranges.append((vma.start, vma.end))
    return ranges
