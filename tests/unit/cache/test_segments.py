"""Room in segments: what is given is free, and nothing is given twice."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim._native import ffi
from shim.cache.segments import GRAIN, Free, Segment

MIB = 1 << 20


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60))
def test_room_is_given_once(steps: list[tuple[bool, int]]) -> None:
    """As a list of places would have it."""
    free, size = Free(100), 100
    taken: dict[int, int] = {}
    for takes, number in steps:
        used = {n for start, length in taken.items() for n in range(start, start + length)}
        if takes:
            place = free.take(number)
            fits = any(not used & set(range(n, n + number)) for n in range(size - number + 1))
            assert (place is not None) == fits
            if place is not None:
                assert not used & set(range(place, place + number))
                taken[place] = number
        elif taken:
            place = sorted(taken)[number % len(taken)]
            free.give(place, taken.pop(place))
        assert free.left == size - sum(taken.values())
        assert free.whole == (not taken)
    for place, length in taken.items():
        free.give(place, length)
    assert free.take(size) == 0


def test_a_certain_place() -> None:
    free = Free(100)
    free.claim(10, 20)
    free.claim(0, 10)
    for start, length in ((0, 1), (9, 2), (29, 2), (95, 6), (100, 1), (40, 0)):
        with pytest.raises(ValueError, match="are not free"):
            free.claim(start, length)
    assert (free.take(70), free.left) == (30, 0)


def test_what_is_written_stays(tmp_path: Path) -> None:
    made = Segment.make(tmp_path / "00007", 7, 2 * MIB)
    made.view(GRAIN, 4)[:] = b"data"
    made.close()
    assert (tmp_path / "00007").stat().st_mode & 0o777 == 0o600
    found = Segment.open(tmp_path / "00007", 7)
    assert bytes(found.view(GRAIN, 5)) == b"data\0"
    assert found.free.whole, "whoever knows what is in it has to say so"
    found.close()


def test_all_pages_are_there(tmp_path: Path) -> None:
    made = Segment.make(tmp_path / "00000", 0, 2 * MIB)
    assert made.path.stat().st_blocks * 512 >= 2 * MIB
    made.close()


def test_no_memory_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="full"):
        Segment.make(tmp_path / "00000", 0, 2 * MIB)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 100])
def test_a_file_that_is_none(tmp_path: Path, size: int) -> None:
    (tmp_path / "00000").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"has {size} bytes"):
        Segment.open(tmp_path / "00000", 0)


def test_it_is_unpinned_first(tmp_path: Path) -> None:
    made, seen = Segment.make(tmp_path / "00000", 0, 2 * MIB), []
    made.unpin = lambda: seen.append(len(made.memory))
    made.close()
    assert seen == [2 * MIB]


def test_it_is_unmapped_though_it_was_pinned(tmp_path: Path) -> None:
    """Who unpins has the address, and so an export of the memory, of which there may be none."""
    made = Segment.make(tmp_path / "00000", 0, 2 * MIB)

    def unpin(address: object) -> None:
        assert address

    made.unpin = partial(unpin, ffi.from_buffer("char[]", made.memory))
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    made.close()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
