"""Regions: made, shared, looked at for zeros; and what becomes of the driver's refusals."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes.cuda import VARIABLE, FakeCuda
from fakes.host import open_fds
from fakes.regions import UUIDS, content, pattern, put, streams

from shim.errors import GpuFailed, Unfit
from shim.gpu.memory.device import CHUNK, GRANULARITY, Memory, Region

SIZE = 2 * GRANULARITY
OUT_OF_MEMORY, OPERATING_SYSTEM = 2, 304
MARKS = "..xx1.." + "." * 20 + "x" * 8 + "1"


@pytest.fixture
def cuda(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A driver with two GPUs."""
    made = FakeCuda(tmp_path_factory.mktemp("cuda"))
    (made.folder / "gpus").write_text("0,1")
    monkeypatch.setenv(VARIABLE, str(made.folder))
    return made


def flags(data: bytes) -> bytes:
    """What a scan of it should answer."""
    return bytes(any(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))


def test_new_memory_is_set_to_zero(cuda: FakeCuda, memory: Memory) -> None:
    cuda.trace()
    with memory.create(UUIDS[0], SIZE) as region:
        assert content(region) == bytes(SIZE)
        assert region.scan() == bytes(SIZE // CHUNK)
    assert cuda.count("cuMemCreate") == 1
    # Of the region, and of the flags of the scan.
    assert cuda.count("cuMemsetD8Async") == 2


def test_shared_memory_is_the_same_and_outlives_who_made_it(cuda: FakeCuda, memory: Memory) -> None:
    data = pattern(MARKS, 5)
    made = memory.create(UUIDS[1], len(data))
    fd = made.descriptor()
    taken = memory.take(UUIDS[1], len(data), fd)
    put(made, data)
    made.close()
    os.close(fd)
    assert taken.scan() == flags(data)
    taken.close()


@pytest.mark.parametrize(
    "call", [None, "cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"]
)
@pytest.mark.parametrize("marks", [MARKS, "", "x", "1" * 64, "." * 31 + "1"])
def test_zeros_are_found_with_and_without_the_kernel(
    cuda: FakeCuda, memory: Memory, call: str | None, marks: str
) -> None:
    data = pattern(marks or ".", 3)
    if call:
        cuda.answer(call, OPERATING_SYSTEM, always=True)
    cuda.trace()
    with memory.create(UUIDS[0], len(data)) as region:
        put(region, data)
        assert region.scan() == flags(data)
        assert region.scan() == flags(data)
    assert cuda.count("cuModuleLoadData") == 1
    assert cuda.count("cuMemHostRegister_v2") == cuda.count("cuMemHostUnregister")
    assert (cuda.count("cuMemHostRegister_v2") > 0) == (call is not None)
    memory.close()
    assert cuda.count("cuMemAlloc_v2") == cuda.count("cuMemFree_v2")
    assert cuda.count("cuMemAlloc_v2") == (call in (None, "cuLaunchKernel"))


def test_what_the_kernel_needs_grows_with_the_regions(cuda: FakeCuda, memory: Memory) -> None:
    cuda.trace()
    for size in (1, 3, 2, 1):
        with memory.create(UUIDS[0], size * GRANULARITY) as region:
            put(region, b"1", size * GRANULARITY - 1)
            assert region.scan() == bytes(size * 32 - 1) + b"\1"
    assert (cuda.count("cuMemAlloc_v2"), cuda.count("cuMemFree_v2")) == (2, 1)


def test_no_room_for_what_the_kernel_needs(cuda: FakeCuda, memory: Memory) -> None:
    data = pattern(MARKS, 3)
    cuda.answer("cuMemAlloc_v2", OUT_OF_MEMORY)
    with memory.create(UUIDS[0], len(data)) as region:
        put(region, data)
        assert region.scan() == flags(data)
        assert region.scan() == flags(data)


def reached_by_network_cards(region: Region) -> bool:
    fd = region.descriptor()
    try:
        return "rdma" in os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_memory_for_network_cards(cuda: FakeCuda, memory: Memory) -> None:
    """Where they reach none, it is memory like any other."""
    for possible in (True, False):
        for wanted in (True, False):
            with memory.create(UUIDS[0], SIZE, rdma=wanted) as region:
                assert reached_by_network_cards(region) == (wanted and possible)
        (cuda.folder / "no-rdma").touch()
    cuda.answer("cuMemCreate", OUT_OF_MEMORY)
    with pytest.raises(GpuFailed, match="cuMemCreate"):
        memory.create(UUIDS[0], SIZE, rdma=True)


def create(memory: Memory) -> None:
    memory.create(UUIDS[0], SIZE).close()


def take(memory: Memory) -> None:
    with memory.create(UUIDS[0], SIZE) as made:
        fd = made.descriptor()
        try:
            memory.take(UUIDS[0], SIZE, fd).close()
        finally:
            os.close(fd)


def scan(memory: Memory) -> None:
    with memory.create(UUIDS[0], SIZE) as made:
        made.scan()


CALLS = [
    *((create, call) for call in (
        "cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetUuid", "cuDevicePrimaryCtxRetain",
        "cuCtxSetCurrent", "cuStreamCreate", "cuMemCreate", "cuMemAddressReserve", "cuMemMap",
        "cuMemSetAccess", "cuMemsetD8Async", "cuStreamSynchronize", "cuMemUnmap",
        "cuMemAddressFree", "cuMemRelease",
    )),
    (take, "cuMemExportToShareableHandle"),
    (take, "cuMemImportFromShareableHandle"),
    (scan, "cuMemcpyDtoHAsync"),
]  # fmt: skip
FULL_NAMES = {"cuMemcpyDtoHAsync": "cuMemcpyDtoHAsync_v2"}


@pytest.mark.parametrize(("act", "call"), CALLS, ids=[call for _, call in CALLS])
def test_a_refusal_is_named_and_leaves_nothing(
    cuda: FakeCuda, memory: Memory, act: Callable[[Memory], None], call: str
) -> None:
    cuda.answer(FULL_NAMES.get(call, call), OPERATING_SYSTEM)
    before = open_fds()
    with pytest.raises(GpuFailed, match=f"{call}: CUDA_ERROR_OPERATING_SYSTEM"):
        act(memory)
    if not call.startswith(("cuMemUnmap", "cuMemAddressFree", "cuMemRelease")):
        assert open_fds() == before
    act(memory)
    assert streams(cuda) == 1


def test_no_room_is_told_and_room_comes_back(cuda: FakeCuda, memory: Memory) -> None:
    cuda.answer("cuMemCreate", OUT_OF_MEMORY)
    with pytest.raises(GpuFailed, match="OUT_OF_MEMORY") as failed:
        memory.create(UUIDS[0], SIZE)
    assert failed.value.hint
    create(memory)


def test_several_gpus_have_one_context_each(cuda: FakeCuda, memory: Memory) -> None:
    cuda.trace()
    memory.use(UUIDS[0])
    regions = [memory.create(UUIDS[n % 2], SIZE) for n in range(5)]
    assert cuda.count("cuDevicePrimaryCtxRetain") == 2
    for number, region in enumerate(regions):
        put(region, bytes([number + 1]) * SIZE)
    assert [content(region)[:1] for region in regions] == [bytes([n + 1]) for n in range(5)]
    for region in regions:
        region.close()
    memory.close()
    assert cuda.count("cuDevicePrimaryCtxRelease_v2") == 2
    assert streams(cuda) == 0


def test_a_gpu_that_there_is_not(memory: Memory) -> None:
    with pytest.raises(GpuFailed, match="no GPU 00000000111122223333444444444403"):
        memory.use(UUIDS[3])


@pytest.mark.parametrize("size", [0, -GRANULARITY, GRANULARITY - 4096, GRANULARITY + 1])
def test_sizes_that_are_none(memory: Memory, size: int) -> None:
    with pytest.raises(ValueError, match="no size of GPU memory"):
        memory.create(UUIDS[0], size)
    with pytest.raises(ValueError, match="no size of GPU memory"):
        memory.take(UUIDS[0], size, 0)


def test_a_uuid_that_is_none(memory: Memory) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        memory.create(b"GPU", SIZE)


def test_a_descriptor_of_something_else(cuda: FakeCuda, memory: Memory) -> None:
    with open(cuda.library, "rb") as other, pytest.raises(GpuFailed, match="cuMemImport"):
        memory.take(UUIDS[0], SIZE, other.fileno())


def test_less_memory_than_was_said(cuda: FakeCuda, memory: Memory) -> None:
    with memory.create(UUIDS[0], SIZE) as made:
        fd = made.descriptor()
        with pytest.raises(GpuFailed, match="cuMemMap"):
            memory.take(UUIDS[0], 2 * SIZE, fd)
        os.close(fd)


def test_what_is_closed_is_closed(memory: Memory) -> None:
    region = memory.create(UUIDS[0], SIZE)
    region.close()
    region.close()
    with pytest.raises(ValueError, match="closed"):
        region.scan()
    with pytest.raises(ValueError, match="closed"):
        region.descriptor()


def test_nothing_is_made_once_all_is_closed(memory: Memory) -> None:
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        memory.create(UUIDS[0], SIZE)


def test_descriptors_are_not_for_children(memory: Memory) -> None:
    with memory.create(UUIDS[0], SIZE) as region:
        fd = region.descriptor()
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_the_driver_makes_one_descriptor(cuda: FakeCuda, memory: Memory) -> None:
    """Of that there are copies, for the node's cache and for the worker, whoever comes first."""
    cuda.trace()
    with memory.create(UUIDS[0], SIZE) as region, ThreadPoolExecutor(4) as pool:
        fds = list(pool.map(lambda _: region.descriptor(), range(8)))
        region.share()
    assert cuda.count("cuMemExportToShareableHandle") == 1
    assert len({os.fstat(fd).st_ino for fd in fds}) == 1
    for fd in fds:
        os.close(fd)


def test_a_driver_that_lacks_calls(tmp_path_factory: pytest.TempPathFactory) -> None:
    lacking = ("cuMemCreate", "cuMemImportFromShareableHandle")
    cuda = FakeCuda(tmp_path_factory.mktemp("old"), without=lacking)
    with pytest.raises(Unfit, match=r"lacks cuMemCreate, cuMemImportFromShareableHandle"):
        Memory.open(cuda.library)


def test_no_driver(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(Unfit, match=r"no CUDA driver: .*nothing\.so"):
        Memory.open(str(tmp_path_factory.mktemp("none") / "nothing.so"))
