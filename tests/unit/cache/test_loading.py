"""A holder that starts anew finds what the one before it had, as far as that is whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.regions import MIB, pattern

from shim.cache import loading, records
from shim.cache.records import Record
from shim.cache.store import Store
from shim.removal import remove_folder
from shim.snapshot.snapshot import Snapshot

from .conftest import SEGMENT, Saved, cache_in, content, taken

ONE, OTHER = ("x" * 48, 1), ("x" * 40, 2)


def again(cache: Store, size: int = 3 * SEGMENT) -> Store:
    """The one that comes next."""
    folder = cache.records_folder.parent
    cache.close()
    made = cache_in(folder, size)
    loading.load(made, 2)
    return made


def test_all_of_it(cache: Store, save: Saved) -> None:
    first = taken(cache, save("one", ONE, OTHER))
    second = taken(cache, save("two", OTHER, ("1", 3)))
    before = cache.accounts()
    with cache.using(first):
        pass
    os.utime(cache.records_folder / second, (1, 1))
    cache = again(cache)
    found = cache.accounts()
    assert found[:4] == before[:4]
    assert [a.key for a in found.snapshots] == [first, second], "by when they were used"
    assert {a.key: a[1:4] for a in found.snapshots} == {a.key: a[1:4] for a in before.snapshots}
    assert content(cache, first) == [pattern(*ONE), pattern(*OTHER)]
    assert content(cache, second) == [pattern(*OTHER), pattern("1", 3)]
    third = taken(cache, save("three", ("x" * 48, 9)))
    assert content(cache, third) == [pattern("x" * 48, 9)]
    assert content(cache, first) == [pattern(*ONE), pattern(*OTHER)], "nobody's room was taken"
    cache.drop(first)
    cache.drop(second)
    cache.drop(third)
    assert cache.accounts()[1:3] == (0, 0)
    cache.close()


def one_byte(cache: Store, record: Path) -> None:
    path = cache.segments_folder / "00000"
    with open(path, "r+b") as file:
        file.seek(MIB)
        byte = file.read(1)[0]
        file.seek(MIB)
        file.write(bytes([byte ^ 1]))


def another_place(cache: Store, record: Path) -> None:
    found = records.parse(record.read_bytes())
    lie = records.listed(found.extents)
    lies = records.placed(found.extents, [e.source for e in lie], [e.offset + 1 for e in lie])
    new = Record(found.key, found.path, found.regions, lies, found.digests)
    record.write_bytes(records.dump(new))


def outside(cache: Store, record: Path) -> None:
    found = records.parse(record.read_bytes())
    count = len(found.names)
    lies = records.placed(found.extents, [0] * count, [1 << 40] * count)
    new = Record(found.key, found.path, found.regions, lies, found.digests)
    record.write_bytes(records.dump(new))


def anothers(cache: Store, record: Path) -> None:
    record.rename(record.with_name("0" * 64))


SPOILT = [
    one_byte,
    another_place,
    outside,
    anothers,
    lambda cache, record: (cache.segments_folder / "00000").unlink(),
    lambda cache, record: os.truncate(cache.segments_folder / "00000", MIB),
    lambda cache, record: record.write_bytes(record.read_bytes()[:-1]),
    lambda cache, record: remove_folder(str(records.parse(record.read_bytes()).path)),
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_what_is_not_as_it_was(
    cache: Store, save: Saved, spoil: Callable[[Store, Path], None]
) -> None:
    """It is forgotten, and can come in again."""
    snapshot = save("one", ONE)
    key = taken(cache, snapshot)
    cache.close()
    spoil(cache, cache.records_folder / key)
    cache = again(cache)
    assert (cache.held, cache.chunks) == ({}, {})
    assert cache.accounts().held == 0
    assert list(cache.records_folder.iterdir()) == []
    if snapshot.path.exists():
        assert content(cache, taken(cache, snapshot)) == [pattern(*ONE)]
    cache.close()


def test_one_of_two_is_spoilt(cache: Store, save: Saved) -> None:
    """What they share stays with the other one."""
    first = taken(cache, save("one", ONE, OTHER))
    second = taken(cache, save("two", OTHER))
    cache.close()
    path = cache.records_folder / first
    path.write_bytes(path.read_bytes()[:-1])
    cache = again(cache)
    assert (cache.has(first), cache.has(second)) == (False, True)
    assert content(cache, second) == [pattern(*OTHER)]
    assert cache.accounts().used == 40 * (64 << 10)
    cache.close()


def test_things_that_nobody_knows(cache: Store, save: Saved) -> None:
    key = taken(cache, save("one", ONE))
    (cache.segments_folder / "what").write_bytes(b"x" * 4096)
    (cache.segments_folder / "00099").write_bytes(b"x" * 4096)
    (cache.records_folder / f"{key}.draft").write_bytes(b"")
    cache = again(cache)
    assert [path.name for path in cache.segments_folder.iterdir()] == ["00000"]
    assert [path.name for path in cache.records_folder.iterdir()] == [key]
    cache.close()


def test_a_smaller_cache(cache: Store, save: Saved) -> None:
    """Those that were used last stay."""
    keys = [taken(cache, save(f"s{n}", ("x" * 60, n))) for n in range(3)]
    for number, key in enumerate(keys):
        os.utime(cache.records_folder / key, (number, number))
    cache = again(cache, SEGMENT)
    assert [cache.has(key) for key in keys] == [False, False, True]
    assert cache.accounts().held == SEGMENT
    cache.close()


def test_snapshots_that_are_gone(cache: Store, save: Saved) -> None:
    found: list[Snapshot] = [save("one", ONE), save("two", OTHER)]
    keys = [taken(cache, snapshot) for snapshot in found]
    for snapshot in found:
        remove_folder(str(snapshot.path))
    with cache.using(keys[0]):
        loading.sweep(cache)
        assert [cache.has(key) for key in keys] == [True, False]
    loading.sweep(cache)
    assert cache.accounts()[1:] == (0, 0, 0, [])
