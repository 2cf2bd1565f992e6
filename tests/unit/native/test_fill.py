"""Filling: the data arrives whole, in every mode; nothing but the mode differs."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.filling import (
    CHOSEN,
    DIRECT,
    MIB,
    PAGE,
    PAGE_CACHE,
    SPARSE,
    Blob,
    Fill,
    Piece,
    Target,
    expected,
    in_a_row,
    noise,
    scattered,
)
from fakes.settled import PATIENCE, own_threads
from hypothesis import given, settings
from hypothesis import strategies as st

SIZE = 18 * MIB + 3 * PAGE
THREADS = [(1, 1), (1, 3), (4, 1), (3, 5)]
BUDGETS = [0, PAGE, 4 * MIB, 9 * MIB, 1 << 40]


@pytest.fixture
def blob(tmp_path: Path) -> Iterator[Blob]:
    made = Blob(tmp_path / "blob", noise(SIZE))
    yield made
    made.close()


@pytest.mark.parametrize("source", [CHOSEN, PAGE_CACHE, DIRECT])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("mixed", [False, True])
def test_all_ways_lead_to_the_same(tmp_path: Path, mixed: bool, warm: bool, source: int) -> None:
    size = 12 * MIB
    blobs = [Blob(tmp_path / "a", noise(size, 1)), Blob(tmp_path / "b", noise(size, 2))]
    pieces = scattered(size, 3, tasks=2) + scattered(size // 2, 4, source=1)
    pieces = [
        p if p.source == 0 else Piece(p.offset, p.length, size + p.offset, p.task, 1)
        for p in pieces
    ]
    if mixed:
        random.Random(5).shuffle(pieces)
    ways = list(itertools.product(THREADS, BUDGETS, [True, False]))
    rng = random.Random(f"{mixed}{warm}{source}")
    for (readers, fillers), budget, ahead in rng.sample(ways, 5):
        for blob in [] if warm else blobs:
            blob.drop()
        with (
            Target(2 * size) as one,
            Target(2 * size) as two,
            Fill(
                blobs,
                pieces,
                [one.address, two.address],
                budget=budget,
                readers=readers,
                fillers=fillers,
                source=source,
            ) as fill,
        ):
            if ahead:
                fill.prefetch()
            fill.start([one.pid, two.pid])
            fill.wait()
            progress = fill.progress()
            assert one.read() == expected(blobs, pieces, 0, 2 * size)
            assert two.read() == expected(blobs, pieces, 1, 2 * size)
        assert progress.done == progress.total == sum(piece.length for piece in pieces)
        assert progress.direct + progress.cached >= progress.total
        assert progress.peak <= budget
        assert progress.buffered == 0
    for blob in blobs:
        blob.close()


@st.composite
def layouts(draw: st.DrawFn) -> list[Piece]:
    """Sorted pieces of one source for one task, also with the same data twice."""
    pages, at, place = st.integers(1, 1024), 0, 0
    pieces: list[Piece] = []
    while len(pieces) < draw(st.integers(1, 40)):
        at = max(0, at + draw(st.sampled_from([0, 0, 0, 1, 16, 17, 100, -1])) * PAGE)
        length = min(draw(pages) * PAGE, SIZE - at)
        if length <= 0:
            break
        pieces.append(Piece(at, length, place, flags=draw(st.sampled_from([0, SPARSE]))))
        at, place = at + length, place + length
    return sorted(pieces, key=lambda piece: piece.offset)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Blob, Target]]:
    made = Blob(tmp_path_factory.mktemp("big"), noise(SIZE))
    with Target(64 * MIB) as target:
        yield made, target
    made.close()


@settings(max_examples=40, deadline=None)
@given(pieces=layouts(), source=st.integers(0, 2), budget=st.sampled_from(BUDGETS))
def test_any_layout(
    big: tuple[Blob, Target], pieces: list[Piece], source: int, budget: int
) -> None:
    blob, target = big
    pieces = [piece for piece in pieces if piece.place + piece.length <= target.size]
    with Fill([blob], pieces, [target.address], source=source, budget=budget) as fill:
        fill.start([target.pid])
        fill.wait()
    memory = target.read()
    for piece in pieces:
        data = blob.data[piece.offset : piece.offset + piece.length]
        assert memory[piece.place : piece.place + piece.length] == data


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_zero_pages(tmp_path: Path, warm: bool) -> None:
    full = noise(PAGE)
    data = b"".join(full if n % 3 == 0 or 512 <= n < 900 else bytes(PAGE) for n in range(1024))
    blob = Blob(tmp_path, data)
    pieces = [Piece(0, 2 * MIB, 0, flags=SPARSE), Piece(2 * MIB, 2 * MIB, 2 * MIB)]
    if not warm:
        blob.drop()
    with Target(4 * MIB) as target, Fill([blob], pieces, [target.address]) as fill:
        fill.start([target.pid])
        fill.wait()
        # What was not asked to be left is written. (To be looked at before it is read.)
        assert target.present() == [n % 3 == 0 or n >= 512 for n in range(1024)]
        assert target.read() == data
        assert fill.progress().zero == sum(PAGE for n in range(512) if n % 3)
    blob.close()


def test_shared_memory(blob: Blob) -> None:
    with Target(SIZE, shared=True) as target, Fill([blob], in_a_row(SIZE), [target.address]) as f:
        f.start([target.pid])
        f.wait()
        assert target.read() == blob.data


def test_nothing_to_fill() -> None:
    with Fill([], []) as fill:
        fill.prefetch()
        fill.start([])
        fill.wait()
        assert fill.failure() == (0, 0, 0)


def test_only_verifying(blob: Blob) -> None:
    with Fill([blob], in_a_row(SIZE)) as fill:
        fill.start()
        fill.wait()
        assert fill.progress().done == SIZE


@pytest.mark.parametrize("nodes", [[0], [0, 0], [77], [-1, 0]])
def test_nodes(blob: Blob, nodes: list[int]) -> None:
    before = os.sched_getaffinity(0)
    with Target(SIZE) as target, Fill([blob], in_a_row(SIZE), [target.address]) as fill:
        fill.start([target.pid], nodes)
        fill.wait()
        assert target.read() == blob.data
    assert os.sched_getaffinity(0) == before


def test_several_at_once(tmp_path: Path) -> None:
    blobs = [Blob(tmp_path / str(n), noise(SIZE, n)) for n in range(4)]
    targets = [Target(SIZE) for _ in blobs]
    fills = [
        Fill([b], in_a_row(SIZE), [t.address], budget=n * 4 * MIB, source=n % 3)
        for n, (b, t) in enumerate(zip(blobs, targets, strict=True))
    ]
    for fill, target in zip(fills, targets, strict=True):
        fill.start([target.pid])
    for fill, target, blob in zip(fills, targets, blobs, strict=True):
        with target, fill:
            fill.wait()
            assert target.read() == blob.data
        blob.close()


def test_reading_ahead_stops_at_the_budget(blob: Blob) -> None:
    blob.drop()
    with Fill([blob], in_a_row(SIZE), budget=9 * MIB, source=DIRECT, readers=4) as fill:
        fill.prefetch()
        while fill.progress().direct + fill.progress().cached < 8 * MIB:
            pass
        fill.prefetch()  # once more: nothing
        assert fill.progress().buffered == fill.progress().peak == 8 * MIB
        fill.start()
        fill.wait()
        assert fill.progress().peak == 8 * MIB


@pytest.mark.parametrize("damaged", range(4))
def test_what_comes_first_is_read_first(tmp_path: Path, damaged: int) -> None:
    # So that whoever mixes what lies on several disks keeps all of them busy.
    blobs = [Blob(tmp_path / str(n), noise(8 * MIB, n)) for n in range(2)]
    pieces = [Piece(at, 4 * MIB, 0, source=n) for at in (0, 4 * MIB) for n in (0, 1)]
    with Fill(blobs, pieces, budget=8 * MIB, readers=1, damage=[damaged]) as fill:
        fill.prefetch()
        if damaged < 2:
            with pytest.raises(OSError, match="Bad message"):
                fill.wait()
            assert fill.failure()[2] == damaged
        else:
            with pytest.raises(OSError, match="timed out"):
                fill.wait(100)
    for blob in blobs:
        blob.close()


def test_what_is_cached_is_copied_before_the_start(blob: Blob) -> None:
    with Target(SIZE) as target, Fill([blob], in_a_row(SIZE), [target.address]) as fill:
        fill.prefetch()
        while fill.progress().cached < SIZE:
            pass
        fill.start([target.pid])
        fill.wait()
        assert target.read() == blob.data
        assert (fill.progress().direct, fill.progress().peak) == (0, SIZE)


def test_what_is_cached_stays_there_once_there_is_a_container(blob: Blob) -> None:
    with Target(SIZE) as target, Fill([blob], in_a_row(SIZE), [target.address]) as fill:
        fill.hurry()
        fill.prefetch()
        fill.start([target.pid])
        fill.wait()
        assert target.read() == blob.data
        assert (fill.progress().cached, fill.progress().peak) == (SIZE, 0)


def test_what_is_being_read_ahead_is_still_used(blob: Blob) -> None:
    with Target(SIZE) as target, Fill([blob], in_a_row(SIZE), [target.address], readers=1) as fill:
        fill.prefetch()
        while fill.progress().cached == 0:
            pass
        fill.hurry()
        fill.start([target.pid])
        fill.wait()
        assert target.read() == blob.data
        assert fill.progress().cached == SIZE
        assert 0 < fill.progress().peak <= SIZE


def niceness(threads: set[str]) -> set[int]:
    """proc_pid_stat(5): the 19th field."""
    texts = [Path(f"/proc/self/task/{thread}/stat").read_text() for thread in threads]
    return {int(text.rpartition(")")[2].split()[16]) for text in texts}


@pytest.mark.parametrize(("source", "lowest"), [(CHOSEN, 19), (DIRECT, os.nice(0))])
def test_nobody_waits_for_what_is_cached(blob: Blob, source: int, lowest: int) -> None:
    found, budget, ends = {os.nice(0)}, 256 * MIB, time.monotonic() + PATIENCE
    while True:
        others = own_threads()
        pieces = in_a_row(16 * MIB) * 20
        with Fill([blob], pieces, budget=budget, readers=1, source=source) as fill:
            fill.prefetch()
            while fill.progress().buffered < budget:
                found |= niceness(own_threads() - others)
            fill.start()
        # Once more if all was read while there was no processor to look at it.
        if max(found) >= lowest or time.monotonic() > ends:
            break
    assert max(found) == lowest


def test_what_is_cached_may_stay_there(blob: Blob) -> None:
    with Fill([blob], in_a_row(SIZE), source=PAGE_CACHE) as fill:
        fill.prefetch()
        fill.start()
        fill.wait()
        assert (fill.progress().cached, fill.progress().peak) == (SIZE, 0)
