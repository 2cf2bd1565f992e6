"""A list of extents is believed only if all of it can be right."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from fakes.images import BASE, LARGE, vma

from shim.proto import criu_pb as pb
from shim.snapshot import saving
from shim.snapshot.extents import SIZE, Columns, check, interleaved, parted, renumbered
from shim.snapshot.images import PAGE

BLOCK = 4 << 20
VMAS = [vma(BASE, 2 * LARGE), vma(BASE + 2 * LARGE, LARGE, "file"), vma(BASE + BLOCK, BLOCK)]


def extent(
    address: int = BASE,
    offset: int = 0,
    length: int = LARGE,
    task: int = 0,
    source: int = 0,
    flags: int = 0,
) -> bytes:
    return struct.pack("<QQIIIHH", address, offset, length, 7, task, source, flags)


def checked(
    *extents: bytes, sizes: Sequence[int] = (64 << 20,), vmas: Sequence[list[pb.Vma]] = (VMAS,)
) -> list[list[tuple[int, int]]]:
    return check(Columns.of(b"".join(extents)), sizes, vmas)


def test_disks_are_read_by_turns() -> None:
    """Each in order, large reads as large as they were."""
    parts = [extent(offset=at * BLOCK // 2, length=BLOCK // 2, source=n)
             for n in range(3) for at in range(4)]  # fmt: skip
    records = b"".join(parts)
    assert interleaved(records, ["one"] * 3) is records
    assert interleaved(b"", []) == b""
    mixed = interleaved(records, ["one", "two", "one"])
    assert [parts.index(mixed[at : at + SIZE]) for at in range(0, len(mixed), SIZE)] == [
        *(0, 1, 4, 5),
        *(2, 3, 6, 7),
        *(8, 9, 10, 11),
    ]


def test_some_areas_come_apart() -> None:
    parts = [extent(BASE + n * LARGE, task=n % 2, offset=n * LARGE) for n in range(10)]
    records = b"".join(parts)
    assert parted(records, {}) == (b"", records)
    assert parted(b"", {0: [(BASE, BASE + BLOCK)]}) == (b"", b"")
    areas = {0: [(BASE, BASE + LARGE), (BASE + 3 * LARGE, BASE + 7 * LARGE)], 5: [(0, BASE)]}
    first, rest = parted(records, areas)
    assert first == parts[0] + parts[4] + parts[6]
    assert rest == b"".join(part for n, part in enumerate(parts) if n not in (0, 4, 6))
    assert parted(records, {0: [(0, 1 << 64)], 1: [(0, 1 << 64)]}) == (records, b"")


def test_none() -> None:
    assert checked() == [[]]
    assert checked(vmas=[]) == []


def test_ranges_are_joined() -> None:
    found = checked(
        extent(flags=1),
        extent(BASE + LARGE, LARGE, flags=0),
        extent(BASE + 2 * LARGE, 2 * LARGE),
        extent(BASE + BLOCK, 3 * LARGE, BLOCK),
    )
    assert found == [[(BASE, BASE + 3 * LARGE), (BASE + BLOCK, BASE + 2 * BLOCK)]]


def test_several_tasks_and_files() -> None:
    """In the order of files: memory may come in any."""
    found = checked(
        extent(BASE + LARGE, 0),
        extent(BASE, LARGE),
        extent(BASE + LARGE, 0, task=1, source=2),
        extent(BASE, LARGE, PAGE, task=1, source=2),
        sizes=[64 << 20] * 3,
        vmas=[VMAS, VMAS],
    )
    assert found == [
        [(BASE, BASE + 2 * LARGE)],
        [(BASE, BASE + PAGE), (BASE + LARGE, BASE + 2 * LARGE)],
    ]


@pytest.mark.parametrize(
    ("extents", "words"),
    [
        ([extent(task=1)], "a task or a file that is not listed"),
        ([extent(source=1)], "a task or a file that is not listed"),
        ([extent(flags=2)], "flags that are unknown"),
        ([extent(flags=1 << 15)], "flags that are unknown"),
        ([extent(length=0)], "is empty"),
        ([extent(), extent(BASE + LARGE, 0, 0)], "is empty"),
        ([extent(address=BASE + 8)], "not made of whole pages"),
        ([extent(offset=8)], "not made of whole pages"),
        ([extent(length=8)], "not made of whole pages"),
        ([extent(address=1 << 63)], "lies where nothing can be"),
        ([extent(offset=1 << 63)], "lies where nothing can be"),
        ([extent(length=BLOCK + PAGE)], "crosses a multiple"),
        ([extent(address=BASE + PAGE, length=BLOCK)], "crosses a multiple"),
        ([extent(address=BASE + BLOCK - PAGE, length=2 * PAGE)], "crosses a multiple"),
        ([extent(address=(1 << 63) - PAGE, length=2 * PAGE)], "crosses a multiple"),
        ([extent(offset=64 << 20)], "ends outside its file"),
        ([extent(offset=(64 << 20) - PAGE)], "ends outside its file"),
        ([extent(), extent(BASE + LARGE, 0)], "overlap in their file, or are out of order"),
        ([extent(), extent(BASE + LARGE, LARGE - PAGE)], "overlap in their file"),
        ([extent(offset=LARGE), extent(BASE + LARGE, 0)], "out of order"),
        ([extent(), extent(BASE, LARGE)], "extents overlap at 0x7f0000000000"),
        ([extent(), extent(BASE + LARGE - PAGE, LARGE)], "extents overlap at 0x7f000001f000"),
        ([extent(flags=1), extent(BASE + PAGE, LARGE, PAGE)], "extents overlap"),
        ([extent(address=BASE - LARGE)], "outside what can be filled"),
        ([extent(address=BASE + 3 * LARGE)], "outside what can be filled"),
        ([extent(address=BASE + 3 * LARGE - PAGE)], "outside what can be filled"),
        ([extent(address=0)], "outside what can be filled"),
        ([extent(BASE + 2 * LARGE, flags=1)], "outside what can be filled"),
    ],
)
def test_what_cannot_be_right(extents: list[bytes], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        checked(*extents)


def test_files_out_of_order() -> None:
    two = [extent(source=1), extent(BASE + LARGE)]
    with pytest.raises(ValueError, match="out of order"):
        checked(*two, sizes=[64 << 20] * 2)


@pytest.mark.parametrize("changes", [{"prot": 1}, {"prot": 7}, {"flags": 0x122}, {"status": 0x203}])
def test_mappings_that_cannot_be_filled(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="outside what can be filled"):
        checked(extent(), vmas=[[vma(BASE, LARGE, **changes)]])


def test_another_tasks_mappings_do_not_count() -> None:
    with pytest.raises(ValueError, match="outside what can be filled"):
        checked(extent(task=1), vmas=[VMAS, []])


def test_overlaps_are_found_wherever_they_are() -> None:
    """Among many extents, in any order of memory, one is moved onto its neighbour."""
    places = list(range(64))
    random.Random(1).shuffle(places)
    made = [extent(BASE + at * LARGE, n * LARGE) for n, at in enumerate(places)]
    mapped = [[vma(BASE, 64 * LARGE)]]
    assert checked(*made, vmas=mapped) == [[(BASE, BASE + 64 * LARGE)]]
    for n, at in enumerate(places):
        moved = BASE + at * LARGE + (PAGE if at + 1 < 64 else -PAGE)
        length = LARGE if moved // BLOCK == (moved + LARGE - 1) // BLOCK else PAGE
        if length == PAGE:
            continue
        others = [*made[:n], extent(moved, n * LARGE, length), *made[n + 1 :]]
        with pytest.raises(ValueError, match="extents overlap"):
            checked(*others, vmas=mapped)


def test_renumbered() -> None:
    records = extent(task=3, source=4) + extent(task=1, source=9, flags=1)
    assert renumbered(records) == (
        extent(task=1) + extent(task=0, source=1, flags=1),
        [1, 3],
        [4, 9],
    )
    assert renumbered(b"") == (b"", [], [])


def test_one_size() -> None:
    assert saving.SIZE == SIZE == len(extent())
