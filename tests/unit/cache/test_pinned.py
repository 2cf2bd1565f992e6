"""Copies from memory that is pinned, and what the driver may say to that."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.regions import MIB, UUIDS, content

from shim.cache.pinned import PinnedMemory, put
from shim.errors import GpuFailed
from shim.gpu.memory.device import Region

EXTENT = struct.Struct("<QQIIIHH")
OPERATING_SYSTEM = 304
UNPIN = "cuMemHostUnregister"


@pytest.fixture
def refused() -> list[str]:
    """Calls that do nothing once, as a test says."""
    return []


@pytest.fixture
def memory(cuda: FakeCuda, refused: list[str], nobody_is_left: None) -> Iterator[PinnedMemory]:
    cuda.trace()
    made = PinnedMemory.open(cuda.library)
    yield made
    cuda.reset()
    made.close()
    for begun, ended in (
        ("cuStreamCreate", "cuStreamDestroy_v2"),
        ("cuEventCreate", "cuEventDestroy_v2"),
    ):
        assert cuda.count(begun) == cuda.count(ended) + refused.count(begun)


@pytest.fixture
def two(memory: PinnedMemory) -> Iterator[list[Region]]:
    """Regions on two GPUs."""
    with ExitStack() as stack:
        yield [stack.enter_context(memory.create(UUIDS[gpu], 4 * MIB)) for gpu in (0, 1)]


def source(seed: int) -> memoryview:
    made = memoryview(mmap.mmap(-1, 2 * MIB))
    made[:] = bytes(seed + n % 199 for n in range(4096)) * (2 * MIB // 4096)
    return made


def extent(address: int, offset: int, length: int, region: int = 0, place: int = 0) -> bytes:
    return EXTENT.pack(address, offset, length, 0, region, place, 0)


def test_to_where_it_belongs(two: list[Region], cuda: FakeCuda) -> None:
    sources = [source(1), source(2), memoryview(b"")]
    before = len(cuda.traced)
    put(
        two,
        sources,
        extent(0, 4096, 8192)
        + extent(8192, 12288, 4096)  # goes on with the one before
        + extent(MIB, 0, 4096)
        + extent(4 * MIB - 4096, 2 * MIB - 4096, 4096, 1, 1),
    )
    first, second = (content(region) for region in two)
    assert first[:12288] == bytes(sources[0][4096:16384])
    assert first[MIB : MIB + 4096] == bytes(sources[0][:4096])
    assert not any(first[12288:MIB])
    assert not any(first[MIB + 4096 :])
    assert second[-4096:] == bytes(sources[1][-4096:])
    assert not any(second[:-4096])
    names = [name for name, _ in cuda.traced[before:]]
    assert names.count("cuMemcpyHtoDAsync_v2") == 3


def test_no_copy_is_from_two_pieces(two: list[Region], cuda: FakeCuda) -> None:
    """Each is pinned by itself, and the driver takes no copy that crosses the border."""
    both = source(5)
    before = len(cuda.traced)
    extents = extent(0, MIB - 4096, 4096) + extent(4096, 0, 4096, 0, 1)
    put(two, [both[:MIB], both[MIB:]], extents)
    assert content(two[0])[:8192] == bytes(both[MIB - 4096 : MIB + 4096])
    names = [name for name, _ in cuda.traced[before:]]
    assert names.count("cuMemcpyHtoDAsync_v2") == 2


def test_nothing_at_all(two: list[Region]) -> None:
    put(two, [], b"")
    put([], [], b"")


@pytest.mark.parametrize(
    "wrong",
    [
        extent(4 * MIB, 0, 4096),
        extent(4 * MIB - 4096, 0, 8192),
        extent(0, 2 * MIB, 4096),
        extent(0, 2 * MIB - 4096, 8192),
        extent(0, 0, 4096, 2),
        extent(0, 0, 4096, 0, 2),
        extent(0, 0, 4096, 0, 1),
        extent((1 << 64) - 4096, 0, 4096),
        extent(0, (1 << 64) - 4096, 4096),
    ],
)
def test_nonsense_is_found_before_anything_is_copied(two: list[Region], wrong: bytes) -> None:
    with pytest.raises(ValueError, match="an extent lies outside"):
        put(two, [source(1), memoryview(b"")], extent(0, 0, 4096) + wrong)
    assert not any(content(two[0]))


@pytest.mark.parametrize(
    "call",
    [
        "cuCtxSetCurrent",
        "cuStreamCreate",
        "cuMemcpyHtoDAsync_v2",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventSynchronize",
    ],
)
def test_the_driver_refuses(
    two: list[Region], cuda: FakeCuda, refused: list[str], call: str
) -> None:
    cuda.answer(call, OPERATING_SYSTEM)
    refused.append(call)
    name = call.removesuffix("_v2")
    with pytest.raises(GpuFailed, match=f"{name}: CUDA_ERROR_OPERATING_SYSTEM"):
        put(two, [source(1)], extent(0, 0, 4096) + extent(0, 0, 4096, 1))
    put(two, [source(1)], extent(0, 0, 4096) + extent(0, 0, 4096, 1))
    assert content(two[1])[:4096] == bytes(source(1)[:4096])


def test_pinned_once(memory: PinnedMemory, cuda: FakeCuda) -> None:
    data = source(1)
    unpin = memory.pin(UUIDS[0], data)
    with pytest.raises(GpuFailed, match="cannot pin memory: cuMemHostRegister"):
        memory.pin(UUIDS[0], data)
    unpin()
    again = memory.pin(UUIDS[1], data)
    again()
    assert cuda.count(UNPIN) == 2


def test_one_that_cannot_be_unpinned(memory: PinnedMemory, cuda: FakeCuda) -> None:
    unpin = memory.pin(UUIDS[0], source(1))
    cuda.answer(UNPIN, OPERATING_SYSTEM)
    unpin()  # and goes on
    cuda.reset()
    unpin()


def test_nothing_cannot_be_pinned(memory: PinnedMemory) -> None:
    with pytest.raises(ValueError, match="cannot pin memory"):
        memory.pin(UUIDS[0], memoryview(b""))


def test_no_such_gpu(memory: PinnedMemory, tmp_path: Path) -> None:
    with pytest.raises(GpuFailed, match="the driver has no GPU"):
        memory.pin(bytes(16), source(1))
