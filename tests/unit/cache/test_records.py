"""What is written down of a snapshot is read, and nothing else is believed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.cache import records
from shim.cache.records import Record

TASKS = [0, 0, 2, 5, 5, 5, 2, 0]
RECORD = Record("ab" * 32, Path("/snapshots/1"), [2 << 20, 4 << 20], b"e" * 96, b"d" * 96)


def test_as_it_was_written() -> None:
    assert records.parse(records.dump(RECORD)) == RECORD


def test_where_the_data_lies() -> None:
    extents = bytes(range(64))
    lies = records.placed(extents, [3, 4], [4096, 1 << 33])
    record = Record("ab" * 32, Path("/"), [], lies, b"1" * 32 + b"2" * 32)
    first, second = records.listed(lies)
    assert (first[:2], second[:2]) == ((3, 4096), (4, 1 << 33))
    assert record.segments == {3, 4}
    assert record.names == [b"1" * 32, b"2" * 32]
    assert (lies[:8], lies[16:28], lies[30:32]) == (extents[:8], extents[16:28], extents[30:32])
    assert first.length == int.from_bytes(extents[16:20], "little")
    assert first.checksum == int.from_bytes(extents[20:24], "little")


def test_whose_data_it_is() -> None:
    made = [
        struct.pack("<QQIIIHH", n << 20, n, 4096, n, task, 7, 0) for n, task in enumerate(TASKS)
    ]
    extents = b"".join(made)
    assert records.by_region(extents) == {
        task: b"".join(
            struct.pack("<QQIIIHH", n << 20, n, 4096, n, 0, 7, 0)
            for n, other in enumerate(TASKS)
            if other == task
        )
        for task in (0, 2, 5)
    }
    assert records.by_region(b"") == {}


@given(st.integers(0, len(records.dump(RECORD)) - 1), st.integers(1, 255))
def test_any_other_byte(place: int, change: int) -> None:
    data = bytearray(records.dump(RECORD))
    data[place] ^= change
    with pytest.raises(ValueError, match=r"it is|it has"):
        records.parse(bytes(data))


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is no record"):
        records.parse(data)


@pytest.mark.parametrize("size", [0, 5, 100, 400])
def test_cut_off(size: int) -> None:
    with pytest.raises(ValueError, match=r"it is|it has"):
        records.parse(records.dump(RECORD)[:size])


def test_too_long() -> None:
    with pytest.raises(ValueError, match="another checksum"):
        records.parse(records.dump(RECORD) + b"x")


@pytest.mark.parametrize("digests", [b"d" * 64, b"d" * 95])
def test_digests_of_others(digests: bytes) -> None:
    with pytest.raises(ValueError, match="another length"):
        records.parse(records.dump(Record("ab" * 32, Path("/"), [], b"e" * 96, digests)))
