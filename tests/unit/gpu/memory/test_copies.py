"""Copies between regions and files: what comes back is what was there."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.regions import (
    MIB,
    PATIENCE,
    Machine,
    Store,
    chunks,
    close,
    content,
    copied_in,
    pattern,
)
from fakes.settled import eventually
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.gpu.memory.copyin import CopyIn
from shim.gpu.memory.device import CHUNK, GRANULARITY, Memory, laid_out
from shim.snapshot.extents import SIZE
from shim.snapshot.layout import by_turns

MARKS = ["x" * 40 + "." * 30 + "1.x.1", "." * 32, "1", "x" * 150]


# Any two of these meet; all of them do so in tests/native/copies.c.
@pytest.mark.parametrize(
    ("threads", "budget", "ahead", "warm"),
    [
        (1, 0, True, True),
        (5, 0, False, False),
        (1, 4 * MIB, False, True),
        (5, 4 * MIB, True, False),
        (1, 64 * MIB, True, False),
        (5, 64 * MIB, False, True),
    ],
)
def test_what_went_out_comes_back(
    machine: Machine, tmp_path: Path, threads: int, budget: int, ahead: bool, warm: bool
) -> None:
    before = [pattern(marks, seed) for seed, marks in enumerate(MARKS)]
    out = [machine.with_data(data, number % 3) for number, data in enumerate(before)]
    store = Store(tmp_path)
    store.save(out, threads=threads, budget=budget)
    assert store.data() == b"".join(c for data in before for c in chunks(data) if any(c))
    assert {path.stat().st_size for path in store.paths[:-1]} == {store.piece}
    if not warm:
        drop(store)
    # Onto other GPUs.
    back = [machine.region(len(data), (number + 1) % 3) for number, data in enumerate(before)]
    done = copied_in(store, back, ahead=ahead, budget=budget, threads=threads)
    assert done == len(store.data())
    assert [content(region) == data for region, data in zip(back, before, strict=True)] == [
        True
    ] * len(before)


def drop(store: Store) -> None:
    """Out of the page cache, if their file system lets them go."""
    for path in store.paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@settings(max_examples=15, deadline=None)
@given(
    marks=st.lists(
        st.lists(
            st.tuples(st.sampled_from("x1."), st.integers(1, 70)).map(lambda run: run[0] * run[1]),
            max_size=5,
        ).map("".join),
        min_size=1,
        max_size=4,
    ),
    piece=st.sampled_from([CHUNK, 3 * CHUNK, 5 * MIB]),
)
def test_any_layout(
    gpus: FakeCuda, tmp_path_factory: pytest.TempPathFactory, marks: list[str], piece: int
) -> None:
    store = Store(tmp_path_factory.mktemp("store"), piece)
    memory = Memory.open(gpus.library)
    with ExitStack() as stack:
        machine = Machine(gpus, memory, stack)
        before = [pattern(mark or ".", seed) for seed, mark in enumerate(marks)]
        store.save([machine.with_data(data, seed % 3) for seed, data in enumerate(before)])
        check_extents(store, before)
        back = [machine.region(len(data)) for data in before]
        copied_in(store, back)
        assert [content(region) for region in back] == before
    memory.close()


def check_extents(store: Store, regions: Sequence[bytes]) -> None:
    """They are in the order of the files, within 4 MiB, and cover each chunk that is not zero."""
    covered = set()
    last = (0, 0)
    for at in range(0, len(store.extents), SIZE):
        address, offset, length, _, task, source, flags = struct.unpack_from(
            "<QQIIIHH", store.extents, at
        )
        assert (flags, (source, offset) >= last) == (0, True)
        assert address // (4 * MIB) == (address + length - 1) // (4 * MIB)
        assert offset + length <= store.paths[source].stat().st_size
        last = (source, offset + length)
        covered |= {(task, chunk) for chunk in range(address // CHUNK, (address + length) // CHUNK)}
    assert covered == {
        (task, number)
        for task, data in enumerate(regions)
        for number, chunk in enumerate(chunks(data))
        if any(chunk)
    }


def test_where_everything_goes() -> None:
    runs, sizes = laid_out([b"\0\1\1\0", b"\0\0", b"\1\1\1\1\0\1"], 4 * CHUNK)
    assert [(r.task, r.address // CHUNK, r.length // CHUNK) for r in runs] == [
        (0, 1, 2),
        (2, 0, 2),
        (2, 2, 2),
        (2, 5, 1),
    ]
    assert [(r.source, r.offset // CHUNK) for r in runs] == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert sizes == [4 * CHUNK, 3 * CHUNK]
    assert laid_out([bytes(32)]) == ([], [])


def test_dealt_over_disks(machine: Machine, tmp_path: Path) -> None:
    data = pattern("x" * 400, 1)
    out = machine.with_data(data)
    store = Store(tmp_path, 6 * MIB)
    runs, sizes = laid_out([out.scan()], store.piece)
    dealt = by_turns(runs, [number % 2 for number in range(len(sizes))])
    assert dealt != runs
    store.copy_out([out], dealt, sizes)
    assert store.data() == data[: 400 * CHUNK]
    back = machine.region(len(data))
    copied_in(store, [back])
    assert content(back) == data


def test_nothing_but_zeros(machine: Machine, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save([machine.region(GRANULARITY)])
    assert (store.paths, store.extents) == ([], b"")
    back = machine.region(GRANULARITY)
    assert copied_in(store, [back]) == 0
    with CopyIn(b"", []) as copy:
        copy.start([])
        assert copy.wait(PATIENCE) == (0, 0, 0, 0)


def saved(machine: Machine, folder: Path, *marks: str) -> tuple[Store, list[bytes]]:
    """Regions of these patterns, in a file, a region after the other."""
    before = [pattern(mark, seed) for seed, mark in enumerate(marks)]
    store = Store(folder, 64 * MIB)
    store.save([machine.with_data(data) for data in before])
    return store, before


@pytest.mark.parametrize("threads", [3, 5])
@pytest.mark.parametrize("budget", [0, 64 * MIB])
def test_it_begins_with_the_regions_that_are_there(
    machine: Machine, tmp_path: Path, threads: int, budget: int
) -> None:
    """A thread each may wait for the others' two buffers, if these were read first."""
    store, before = saved(machine, tmp_path, "x" * 64, "." * 64, "x" * 60, "x" * 40)
    back, sources = [machine.region(len(data)) for data in before], store.open()
    with CopyIn(store.extents, sources, threads=threads, budget=budget) as copy:
        copy.start([region.size for region in back])
        copy.add(0, back[0])
        eventually(lambda: copy.progress().done == 4 * MIB)
        assert content(back[0]) == before[0]
        copy.add(3, back[3])
        copy.add(2, back[2])
        # There is nothing for the other one: it need not come.
        assert copy.wait(PATIENCE).done == (64 + 60 + 40) * CHUNK
    close(sources)
    assert [content(region) for region in back] == before
