"""What is in the cache, what has to go, and what it all adds up to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fakes.regions import MIB, pattern

from shim.cache.segments import Segment
from shim.cache.store import Store
from shim.errors import FailedPrecondition, NotFound, StoreFull

from .conftest import SEGMENT, Saved, cache_in, content, taken

ONE = ("x" * 48, 1)  # 3 MiB, in one extent
OTHER = ("x" * 48, 2)


def later(cache: Store, *keys: str) -> None:
    """They were used one after the other, long ago."""
    for number, key in enumerate(keys):
        cache.held[key].used = time.time() - 10_000 + number


def test_what_comes_in_is_there(cache: Store, save: Saved) -> None:
    snapshot = save("one", ("x..1", 1), ("." * 32, 2), ("x" * 80 + ".x", 3))
    key = taken(cache, snapshot)
    assert cache.has(key)
    assert content(cache, key) == [
        pattern("x..1", 1),
        pattern("." * 32, 2),
        pattern("x" * 80 + ".x", 3),
    ]
    assert not cache.has("0" * 64)
    with cache.using("0" * 64) as nothing:
        assert nothing is None


def test_equal_chunks_are_one(cache: Store, save: Saved) -> None:
    first = taken(cache, save("one", ONE, OTHER))
    second = taken(cache, save("two", OTHER, ("1", 3)))
    assert first != second
    found = cache.accounts()
    assert [(a.size, a.own) for a in found.snapshots] == [
        (3 * MIB + (64 << 10), 64 << 10),
        (6 * MIB, 3 * MIB),
    ]
    assert found.used == 6 * MIB + (64 << 10)
    cache.drop(first)
    assert content(cache, second) == [pattern(*OTHER), pattern("1", 3)]
    assert cache.accounts().used == 3 * MIB + (64 << 10)


def test_the_same_chunk_twice_in_one(cache: Store, save: Saved) -> None:
    key = taken(cache, save("one", ONE, ONE))
    (account,) = cache.accounts().snapshots
    assert (account.size, account.own, cache.accounts().used) == (6 * MIB, 3 * MIB, 3 * MIB)
    cache.drop(key)
    assert cache.accounts()[1:4] == (0, 0, 0)


def test_a_snapshot_that_only_looks_the_same(cache: Store, save: Saved) -> None:
    """Another folder is another snapshot, whatever its index says."""
    first, second = save("one", ONE), save("two", ONE)
    key = taken(cache, first)
    assert taken(cache, second) != key
    assert cache.accounts().used == 3 * MIB


def test_who_was_not_used_for_the_longest_time_goes(cache: Store, save: Saved) -> None:
    keys = [taken(cache, save(f"s{n}", ("x" * 60, n))) for n in range(3)]
    later(cache, *keys)
    with cache.using(keys[0]):
        pass
    new = taken(cache, save("new", ("x" * 60, 7)))
    assert [cache.has(key) for key in [*keys, new]] == [True, False, True, True]
    assert content(cache, new) == [pattern("x" * 60, 7)]
    assert sorted(path.name for path in cache.records_folder.iterdir()) == sorted(
        [keys[0], keys[2], new]
    )


def test_what_is_copied_stays(cache: Store, save: Saved) -> None:
    keys = [taken(cache, save(f"s{n}", ("x" * 60, n))) for n in range(3)]
    later(cache, *keys)
    with cache.using(keys[0]), cache.using(keys[1]), cache.using(keys[2]):
        with pytest.raises(StoreFull, match="in use"):
            taken(cache, save("new", ("x" * 60, 7)))
        with pytest.raises(FailedPrecondition, match="is being copied"):
            cache.drop(keys[0])
        assert [account.busy for account in cache.accounts().snapshots] == [True] * 3
    assert [cache.has(key) for key in keys] == [True] * 3


def test_what_was_used_lately_stays_unless_somebody_asks(cache: Store, save: Saved) -> None:
    keys = [taken(cache, save(f"s{n}", ("x" * 60, n))) for n in range(3)]
    new = save("new", ("x" * 60, 7))
    with pytest.raises(StoreFull):
        taken(cache, new, idle=600)
    assert [cache.has(key) for key in keys] == [True] * 3
    taken(cache, new)
    assert sum(cache.has(key) for key in keys) == 2


def test_one_that_is_larger_than_all(cache: Store, save: Saved) -> None:
    key = taken(cache, save("one", ONE))
    with pytest.raises(StoreFull, match="has 12648448 bytes of GPU memory, the cache 12582912"):
        taken(cache, save("large", ("x" * 193, 2)))
    assert cache.has(key), "for that nobody has to go"


def test_it_is_read_in_once(cache: Store, save: Saved) -> None:
    snapshot = save("one", ONE)
    key = taken(cache, snapshot)
    (snapshot.path / "pages" / "gpu-1.img.0000").unlink()
    assert taken(cache, snapshot) == key


def test_memory_that_others_need(tmp_path: Path, save: Saved) -> None:
    """It does not grow, but what it has it uses."""
    free = [1 << 40]
    cache = Store(tmp_path / "cache", 3 * SEGMENT, segment=SEGMENT, free=lambda: free[0])
    first = taken(cache, save("one", ONE))
    free[0] = 1 << 30
    second = taken(cache, save("two", OTHER))
    assert (cache.has(first), cache.has(second)) == (False, True)
    assert cache.accounts().held == SEGMENT
    cache.drop(second)
    with pytest.raises(StoreFull, match="there is no memory for it"):
        taken(cache, save("three", OTHER))
    cache.close()


def test_no_memory_after_all(cache: Store, save: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    first = taken(cache, save("one", ONE))

    def refuse(*_: object) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "make", refuse)
        second = taken(cache, save("two", OTHER))
    assert (cache.has(first), cache.has(second)) == (False, True)
    third = taken(cache, save("three", ("x" * 48, 3)))
    assert (cache.has(second), cache.has(third)) == (True, True), "it was only for a while"


def test_a_disk_that_fails(cache: Store, save: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(5, "broken")

    monkeypatch.setattr(Segment, "make", refuse)
    with pytest.raises(OSError, match="broken"):
        taken(cache, save("one", ONE))


def test_memory_is_given_back(cache: Store, save: Saved) -> None:
    key = taken(cache, save("one", ("x" * 100, 1)))
    assert cache.accounts().held == 2 * SEGMENT
    cache.drop(key)
    assert cache.accounts().held == 0
    assert list(cache.segments_folder.iterdir()) == []
    with pytest.raises(NotFound):
        cache.drop(key)


def test_every_segment_is_pinned(tmp_path: Path, save: Saved) -> None:
    pinned: list[Segment] = []
    cache = Store(
        tmp_path / "cache", 3 * SEGMENT, segment=SEGMENT, free=lambda: 1 << 40, pin=pinned.append
    )
    taken(cache, save("one", ("x" * 100, 1)))
    assert {segment.number for segment in pinned} == {0, 1}
    pinned[0].unpin = lambda: None
    assert cache.accounts().pinned == SEGMENT
    cache.close()


@pytest.mark.parametrize("size", [2 * MIB, 3 * MIB, 5 * MIB])
def test_a_size_that_is_no_multiple(tmp_path: Path, size: int) -> None:
    assert cache_in(tmp_path / "cache", size).limit <= size
