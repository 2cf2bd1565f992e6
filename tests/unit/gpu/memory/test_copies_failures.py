"""Copies between regions and files that fail: nothing is believed, and nothing is left behind."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.regions import (
    MIB,
    PATIENCE,
    UUIDS,
    Machine,
    Store,
    close,
    content,
    copied_in,
    pattern,
    start,
)
from fakes.settled import eventually

from shim.errors import Damaged, GpuFailed, RestoreFailed
from shim.gpu.memory.copyin import CopyIn
from shim.gpu.memory.device import BUDGET, CHUNK, GRANULARITY, CopyOut, Memory, laid_out
from shim.snapshot.saving import SaveFailed

OPERATING_SYSTEM = 304


@pytest.mark.parametrize("budget", [0, 64 * MIB])
def test_a_flipped_bit_never_gets_there(machine: Machine, tmp_path: Path, budget: int) -> None:
    data = pattern("x" * 160, 2)
    store = Store(tmp_path, 16 * MIB)
    store.save([machine.with_data(data)])
    with open(store.paths[0], "r+b") as file:
        file.seek(5 * MIB)
        file.write(bytes([data[5 * MIB] ^ 4]))
    back = machine.region(len(data))
    with pytest.raises(Damaged, match=r"gpu-1\.img\.0000 at 4194304 .* has another checksum"):
        copied_in(store, [back], budget=budget, ahead=False)
    assert content(back)[4 * MIB : 8 * MIB] == bytes(4 * MIB)


# Where little is missing, what was there still counts as cached: it is copied where it lies.
@pytest.mark.parametrize(
    ("left", "budget"), [(CHUNK, BUDGET), (MIB - 3 * CHUNK, 0), (MIB - 4096, 0)]
)
def test_a_file_that_was_cut_off(machine: Machine, tmp_path: Path, left: int, budget: int) -> None:
    data = pattern("x" * 64, 2)
    store = Store(tmp_path)
    store.save([machine.with_data(data)])
    sources = store.open()
    assert store.paths[1].stat().st_size == MIB
    os.truncate(store.paths[1], left)
    with CopyIn(store.extents, sources, budget=budget) as copy:
        start(copy, [machine.region(len(data))])
        with pytest.raises(Damaged, match=r"0001 .* cut off"):
            copy.wait(PATIENCE)
    close(sources)


def test_a_file_that_is_read_wrong_before_there_is_a_region(
    machine: Machine, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    store.save([machine.with_data(pattern("x" * 64, 2))])
    store.paths[0].write_bytes(bytes(store.paths[0].stat().st_size))
    sources = store.open()
    with CopyIn(store.extents, sources) as copy:
        copy.prefetch()
        region = machine.region(4 * MIB)

        def refused() -> bool:
            try:
                copy.prefetch()
            except Damaged:
                return True
            return False

        eventually(refused)
        with pytest.raises(Damaged, match="another checksum"):
            copy.start([region.size])
    close(sources)
    assert content(region) == bytes(4 * MIB)


IN = ["cuCtxSetCurrent", "cuStreamCreate", "cuMemcpyHtoDAsync_v2", "cuEventCreate",
      "cuEventRecord", "cuEventSynchronize"]  # fmt: skip
OUT = [call.replace("HtoD", "DtoH") for call in IN]


@pytest.mark.parametrize("call", IN)
@pytest.mark.parametrize("budget", [0, 64 * MIB])
def test_the_driver_refuses_on_the_way_in(
    machine: Machine, tmp_path: Path, call: str, budget: int
) -> None:
    store = Store(tmp_path)
    store.save([machine.with_data(pattern("x" * 160, 4))])
    back = machine.region(10 * MIB)
    # To pin the first buffer, a context is entered, too: that may go wrong.
    machine.cuda.answer(call, *[OPERATING_SYSTEM] * 4)
    machine.refused = call
    name = call.removesuffix("_v2")
    with pytest.raises(GpuFailed, match=f"{name}: CUDA_ERROR_OPERATING_SYSTEM"):
        copied_in(store, [back], threads=1, budget=budget)
    machine.cuda.reset()
    again = machine.region(10 * MIB)
    copied_in(store, [again])
    assert content(again) == pattern("x" * 160, 4)


@pytest.mark.parametrize("call", OUT)
def test_the_driver_refuses_on_the_way_out(machine: Machine, tmp_path: Path, call: str) -> None:
    data = pattern("x" * 160, 4)
    out, store = machine.with_data(data), Store(tmp_path)
    runs, sizes = laid_out([out.scan()], store.piece)
    machine.cuda.answer(call, *[OPERATING_SYSTEM] * 4)
    machine.refused = call
    name = call.removesuffix("_v2")
    with pytest.raises(GpuFailed, match=f"gpu-1.img.*{name}: CUDA_ERROR_OPERATING_SYSTEM"):
        store.copy_out([out], runs, sizes, threads=1)
    machine.cuda.reset()
    store.copy_out([out], runs, sizes)
    assert store.data() == data


def test_memory_that_cannot_be_pinned_is_copied_all_the_same(
    machine: Machine, tmp_path: Path
) -> None:
    data, store = pattern("x" * 160, 4), Store(tmp_path)
    out, back = machine.with_data(data), machine.region(10 * MIB)
    machine.refused = "cuMemHostRegister_v2"
    machine.cuda.answer(machine.refused, OPERATING_SYSTEM, always=True)
    store.save([out])
    copied_in(store, [back])
    assert content(back) == data
    assert machine.cuda.count("cuMemHostRegister_v2") > 0
    assert machine.cuda.count("cuMemHostUnregister") == 0


@pytest.fixture
def stuck(machine: Machine, tmp_path: Path) -> Iterator[tuple[CopyIn, ExitStack]]:
    """A copy that waits for the driver, and what lets that go on."""
    store = Store(tmp_path)
    store.save([machine.with_data(pattern("x" * 160, 4))])
    sources, back = store.open(), machine.region(10 * MIB)
    before = machine.cuda.count("cuEventSynchronize")
    with ExitStack() as held, CopyIn(store.extents, sources) as copy:
        held.enter_context(machine.cuda.held("cuEventSynchronize"))
        start(copy, [back])
        eventually(lambda: machine.cuda.count("cuEventSynchronize") > before)
        yield copy, held
        held.close()
    close(sources)


def test_it_can_be_cancelled_while_the_driver_works(stuck: tuple[CopyIn, ExitStack]) -> None:
    copy, held = stuck
    copy.cancel()
    held.close()
    with pytest.raises(RestoreFailed, match="cancelled"):
        copy.wait(PATIENCE)


def test_it_takes_too_long(
    stuck: tuple[CopyIn, ExitStack], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, held = stuck
    cancel = copy.cancel

    def go_on() -> None:
        cancel()
        held.close()

    monkeypatch.setattr(copy, "cancel", go_on)
    with pytest.raises(RestoreFailed, match=r"not filled in time: [0-9]+ of 10485760 bytes"):
        copy.wait(0)


def test_to_close_it_waits_for_the_driver(stuck: tuple[CopyIn, ExitStack]) -> None:
    copy, held = stuck
    closing = threading.Thread(target=copy.close)
    closing.start()
    assert closing.is_alive()
    held.close()
    closing.join()
    copy.cancel()
    assert copy.progress().total == 10 * MIB
    for late in (copy.prefetch, copy.wait, lambda: copy.start([])):
        with pytest.raises(ValueError, match="closed"):
            late()


def test_a_copy_out_can_be_cancelled_while_one_waits(machine: Machine, tmp_path: Path) -> None:
    """By another; to close it waits for the driver."""
    out = machine.with_data(pattern("x" * 160, 4))
    runs, [size] = laid_out([out.scan()])
    before = machine.cuda.count("cuEventSynchronize")
    with open(tmp_path / "gpu", "wb") as file, ThreadPoolExecutor() as pool, ExitStack() as held:
        file.truncate(size)
        held.enter_context(machine.cuda.held("cuEventSynchronize"))
        copy = CopyOut([out], runs, [("gpu-1.img.0000", file.fileno())])
        eventually(lambda: machine.cuda.count("cuEventSynchronize") > before)
        waiting = pool.submit(copy.wait_read)
        copy.cancel()
        copy.cancel()
        with pytest.raises(SaveFailed, match="canceled"):
            waiting.result(PATIENCE)
        held.close()
        with pytest.raises(SaveFailed, match="canceled"):
            copy.finish()
        copy.close()
        copy.cancel()


def test_a_disk_that_is_full(machine: Machine) -> None:
    out = machine.with_data(pattern("x" * 64, 4))
    runs, _ = laid_out([out.scan()])
    with open("/dev/full", "wb") as full:
        copy = CopyOut([out], runs, [("gpu-1.img.0000", full.fileno())])
        with copy, pytest.raises(SaveFailed, match=r"gpu-1\.img\.0000, .*No space left"):
            copy.finish()


@pytest.mark.parametrize("change", [("<Q", 0, 2 * MIB), ("<I", 24, 1)])
def test_extents_that_lie_elsewhere(
    machine: Machine, tmp_path: Path, change: tuple[str, int, int]
) -> None:
    store = Store(tmp_path)
    store.save([machine.with_data(pattern("x", 4))])
    records = bytearray(store.extents)
    struct.pack_into(change[0], records, change[1], change[2])
    sources, region = store.open(), machine.region(GRANULARITY)
    with CopyIn(bytes(records), sources) as copy:
        with pytest.raises(ValueError, match="outside of its region"):
            copy.start([region.size])
        with pytest.raises(ValueError, match="outside of its region"):
            copy.start([])
    close(sources)
    assert content(region) == bytes(GRANULARITY)


@pytest.mark.parametrize("change", [("<Q", 8, 1 << 40), ("<I", 16, 0), ("<H", 28, 9)])
def test_extents_that_cannot_be_right(
    machine: Machine, tmp_path: Path, change: tuple[str, int, int]
) -> None:
    store = Store(tmp_path)
    store.save([machine.with_data(pattern("x", 4))])
    records = bytearray(store.extents)
    struct.pack_into(change[0], records, change[1], change[2])
    sources = store.open()
    with pytest.raises(OSError, match="cannot prepare"):
        CopyIn(bytes(records), sources)
    close(sources)


def test_runs_that_lie_elsewhere(machine: Machine, tmp_path: Path) -> None:
    out, store = machine.with_data(pattern("x", 4)), Store(tmp_path)
    runs, sizes = laid_out([out.scan()])
    for wrong in (runs[0]._replace(task=1), runs[0]._replace(address=2 * MIB)):
        with pytest.raises(SaveFailed, match="Invalid argument"):
            store.copy_out([out], [wrong], sizes)


def test_regions_of_two_drivers_do_not_mix(machine: Machine, tmp_path: Path) -> None:
    other = Memory.open(machine.cuda.library)
    with other.create(UUIDS[0], GRANULARITY) as strange:
        regions, store = [machine.with_data(pattern("x", 1)), strange], Store(tmp_path)
        with pytest.raises(SaveFailed, match="Invalid argument"):
            store.save(regions)
        with CopyIn(b"", []) as copy, pytest.raises(ValueError, match="not the region"):
            start(copy, regions)
    other.close()


@pytest.mark.parametrize("come", [0, 1])
def test_regions_that_never_come(machine: Machine, tmp_path: Path, come: int) -> None:
    """Whoever knows that cancels it: it does not wait for them for ever."""
    store = Store(tmp_path, 64 * MIB)
    store.save([machine.with_data(pattern("x" * 64, number)) for number in range(3)])
    sources, back = store.open(), [machine.region(4 * MIB) for _ in range(3)]
    with CopyIn(store.extents, sources, threads=3) as copy:
        copy.start([region.size for region in back])
        for number in range(come):
            copy.add(number, back[number])
        eventually(lambda: copy.progress().done == come * 4 * MIB)
        copy.cancel()
        with pytest.raises(RestoreFailed, match="cancelled"):
            copy.wait(PATIENCE)
        copy.add(2, back[2])  # nobody looks at it any more
    close(sources)
    assert content(back[2]) == bytes(4 * MIB)


def test_a_region_that_comes_after_a_failure(machine: Machine, tmp_path: Path) -> None:
    store = Store(tmp_path, 64 * MIB)
    store.save([machine.with_data(pattern("x" * 64, seed)) for seed in (1, 2)])
    with open(store.paths[0], "r+b") as file:
        file.write(bytes(8))
    sources, back = store.open(), [machine.region(4 * MIB) for _ in range(2)]
    with CopyIn(store.extents, sources, threads=2) as copy:  # one may wait for the second region
        copy.start([region.size for region in back])
        copy.add(0, back[0])
        with pytest.raises(Damaged, match="another checksum"):
            copy.wait(PATIENCE)
        copy.add(1, back[1])
        with pytest.raises(Damaged, match="another checksum"):
            copy.wait(PATIENCE)
    close(sources)
    assert content(back[0]) == bytes(4 * MIB)


def test_regions_that_are_others(machine: Machine, tmp_path: Path) -> None:
    store, back = Store(tmp_path), [machine.region(size * GRANULARITY) for size in (1, 2)]
    store.save([machine.with_data(pattern("x" * 32, 1))])
    sources = store.open()
    with CopyIn(store.extents, sources) as copy:
        with pytest.raises(ValueError, match="not the region"):
            copy.add(0, back[0])  # it was not started
        copy.start([region.size for region in back])
        for number, region in ((2, back[0]), (0, back[1])):
            with pytest.raises(ValueError, match="not the region"):
                copy.add(number, region)
        copy.add(0, back[0])
        with pytest.raises(ValueError, match="not the region"):
            copy.add(0, back[0])
        copy.wait(PATIENCE)
    close(sources)
    assert content(back[0]) == pattern("x" * 32, 1)
