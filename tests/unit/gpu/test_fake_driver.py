"""The fake driver's memory calls, by a program that uses them: what other tests rely on."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.cuda import PASS, FakeCuda
from fakes.gpu import WAYS, Program, Refused
from fakes.nvml import H100, numbered
from fakes.settled import eventually

from shim.gpu.nvml import uuid_bytes

INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, NOT_SUPPORTED, CAPTURED = 1, 2, 3, 801, 900
ILLEGAL_ADDRESS = 700
MIB = 1 << 20


@pytest.fixture
def program(cuda: FakeCuda) -> Iterator[Program]:
    with Program(cuda) as program:
        yield program


@pytest.fixture
def driver(cuda: FakeCuda) -> ctypes.CDLL:
    """It, for who makes checkpoints."""
    library = ctypes.CDLL(cuda.library)
    assert library.cuInit(0) == 0
    return library


def refused(program: Program, command: str) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        program.ask(command)
    return caught.value.result, caught.value.call


def descriptors(pid: int) -> list[str]:
    """What a process has open of the fake's device memory."""
    folder = Path(f"/proc/{pid}/fd")
    links = (os.readlink(path) for path in folder.iterdir())
    return [link for link in links if "fake-gpu" in link]


def memory_of(program: Program) -> bytes:
    """The UUID of the GPU that its one piece of memory is of."""
    number = int(program.ask("export 1"))
    path = Path(f"/proc/{program.pid}/fd/{number}")
    with path.open("rb") as file:
        file.seek(2 * MIB + 16)
        return file.read(16)


def test_every_way_to_its_functions(cuda: FakeCuda) -> None:
    """Three programs do the same, and the same comes out."""
    commands = ["fill 1 7", "sum 1", "fill 2 7", "sum 2", "range 2", "attr 1", "props 2", "fork"]
    said = []
    for way in WAYS:
        with Program(cuda, way) as program:
            assert program.number("alloc 3M") == 1
            assert program.number("create 4M") == 2
            said.append([program.ask(command) for command in commands])
    assert said[0] == said[1] == said[2]
    assert said[0][-1] == str(NOT_INITIALIZED)


def test_looking_up(cuda: FakeCuda, driver: ctypes.CDLL) -> None:
    """By CUDA version, and with the variants of programs that have streams of their own."""

    def found(symbol: bytes, version: int, flags: int = 0) -> tuple[int, int, bool]:
        status, place = ctypes.c_int(-1), ctypes.c_void_p()
        result = driver.cuGetProcAddress_v2(
            symbol, ctypes.byref(place), version, ctypes.c_uint64(flags), ctypes.byref(status)
        )
        return result, status.value, place.value is not None

    assert found(b"cuMemAlloc", 12080) == (0, 0, True)
    assert found(b"cuMemAlloc", 3010) == (0, 2, False)
    assert found(b"cuMemAlloc_v2", 12080) == found(b"cuNone", 12080) == (0, 1, False)
    assert found(b"cuMemcpyHtoD", 12080, 2) == (0, 0, True)
    assert found(b"cuMemAlloc", 13010)[0] == INVALID_VALUE  # newer than the driver


def called(cuda: FakeCuda, program: Program) -> set[str]:
    """What a program calls that fills memory."""
    cuda.trace()
    with program:
        program.ask("alloc 1M")
        program.ask("fill 1 1")
    return {name for name, pid in cuda.traced if pid == program.pid}


def test_the_default_stream_of_each_thread(cuda: FakeCuda) -> None:
    theirs, own = called(cuda, Program(cuda)), called(cuda, Program(cuda, PER_THREAD="1"))
    assert theirs - own == {"cuLaunchKernel", "cuStreamSynchronize"}
    assert own - theirs == {"cuLaunchKernel_ptsz", "cuStreamSynchronize_ptsz"}
    assert "cuMemAlloc_v2" in theirs & own


def test_answers(cuda: FakeCuda, program: Program) -> None:
    """They are counted, and may be for one process alone."""
    cuda.answer("cuMemCreate", PASS, OUT_OF_MEMORY, pid=program.pid)
    cuda.answer("cuMemAlloc_v2", INVALID_VALUE, pid=program.pid + 100000)
    program.ask("create 2M")
    assert refused(program, "create 2M") == (OUT_OF_MEMORY, "cuMemCreate")
    program.ask("create 2M")
    program.ask("alloc 2M")


def test_a_call_that_waits(cuda: FakeCuda, program: Program) -> None:
    cuda.trace()
    with cuda.held("cuMemAlloc_v2", program.pid):
        program.tell("alloc 1M")
        eventually(lambda: ("cuMemAlloc_v2", program.pid) in cuda.traced)
        stdout = program.process.stdout
        assert stdout is not None
        assert select.select([stdout], [], [], 0.1)[0] == []
    assert program.answer().startswith("1 ")


def test_as_much_as_there_is(cuda: FakeCuda) -> None:
    with Program(cuda, memory=16 * MIB) as program:
        program.ask("alloc 8M")
        program.ask("create 6M")
        assert program.ask("info") == f"{2 * MIB} {16 * MIB}"
        assert refused(program, "create 4M") == (OUT_OF_MEMORY, "cuMemCreate")
        assert refused(program, "alloc 3M") == (OUT_OF_MEMORY, "cuMemAlloc")
        program.ask("free 1")
        program.ask("create 4M")


def test_sizes(program: Program) -> None:
    assert refused(program, "create 3M") == (INVALID_VALUE, "cuMemCreate")
    assert refused(program, "alloc 0") == (INVALID_VALUE, "cuMemAlloc")


def test_memory_that_is_away(program: Program) -> None:
    """Unmapped, nobody gets at it; mapped again, it is what it was."""
    program.ask("create 4M")
    program.ask("fill 1 3")
    before = program.ask("sum 1")
    program.ask("launch 1 5")
    program.ask("unmap 1")
    assert refused(program, "sum 1") == (INVALID_VALUE, "cuMemcpyDtoH")
    # What had been asked for and not waited for comes too late, and is noticed.
    assert refused(program, "fill 1 3") == (ILLEGAL_ADDRESS, "cuStreamSynchronize")
    program.ask("map 1")
    assert program.ask("sum 1") == before
    assert program.ask("retain 1") == "same"


def test_a_handle_lives_as_long_as_its_mapping(program: Program) -> None:
    program.ask("create 2M")
    program.ask("fill 1 1")
    before = program.ask("sum 1")
    program.ask("release 1")
    assert program.ask("sum 1") == before
    assert refused(program, "release 1") == (INVALID_VALUE, "cuMemRelease")
    assert len(descriptors(program.pid)) == 1
    program.ask("free 1")
    assert descriptors(program.pid) == []


def test_what_cannot_be_exported(program: Program) -> None:
    program.ask("plain 2M")
    assert refused(program, "export 1") == (INVALID_VALUE, "cuMemExportToShareableHandle")
    program.ask("create 2M")
    assert int(program.ask("export 2")) > 0


def test_what_has_no_ipc(program: Program) -> None:
    program.ask("alloc 1M")
    program.ask("create 2M")
    assert program.ask("ipc 1") == "handle"
    assert refused(program, "ipc 2") == (INVALID_VALUE, "cuIpcGetMemHandle")


def test_a_graph(program: Program) -> None:
    program.ask("create 2M")
    program.ask("fill 1 9")
    wanted = program.ask("sum 1")
    program.ask("set 1 0")
    empty = program.ask("sum 1")
    program.ask("capture 1 9")
    assert program.ask("sum 1") == empty
    program.ask("replay")
    assert program.ask("sum 1") == wanted


def test_peers(cuda: FakeCuda) -> None:
    with Program(cuda, gpus="0,1") as program:
        program.ask("create 2M")
        program.ask("alloc 2M")
        assert program.ask("props 1") == "1 0"
        program.ask("device 1")
        assert refused(program, "fill 2 1") == (ILLEGAL_ADDRESS, "cuStreamSynchronize")
        program.ask("peer 0")
        program.ask("fill 2 1")
        assert program.ask("access 1 0") == "3"
        assert program.ask("access 1 1") == "0"  # peer access is nothing to VMM memory
        assert refused(program, "sum 1") == (INVALID_VALUE, "cuMemcpyDtoH")


def test_threads(program: Program) -> None:
    assert program.ask("threads 4 25 64K") == "done"


def test_memory_goes_to_another_process(
    cuda: FakeCuda, driver: ctypes.CDLL, program: Program
) -> None:
    """And stays there when the first one ends."""
    program.ask("create 4M")
    program.ask("fill 1 5")
    there = int(program.ask("export 1"))
    pidfd = os.pidfd_open(program.pid)
    ours = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, there, 0)  # pidfd_getfd
    os.close(pidfd)
    assert ours >= 0
    handle, address = ctypes.c_uint64(), ctypes.c_uint64()
    given = ctypes.c_void_p(ours)
    assert driver.cuMemImportFromShareableHandle(ctypes.byref(handle), given, 1) == 0
    os.close(ours)
    program.process.kill()
    program.process.wait()
    assert driver.cuMemAddressReserve(ctypes.byref(address), 4 * MIB, 0, 0, 0) == 0
    assert driver.cuMemMap(address, ctypes.c_size_t(4 * MIB), 0, handle, 0) == 0
    access = (ctypes.c_int * 3)(1, 0, 3)
    assert driver.cuMemSetAccess(address, ctypes.c_size_t(4 * MIB), access, 1) == 0
    seen = ctypes.string_at(address.value, 4 * MIB)
    assert seen.count(bytes(8)) == 0
    assert driver.cuMemUnmap(address, ctypes.c_size_t(4 * MIB)) == 0
    assert driver.cuMemRelease(handle) == 0


def test_memory_that_a_checkpoint_finds(driver: ctypes.CDLL, program: Program) -> None:
    """It is in private memory, without a descriptor, until the process is restored."""
    program.ask("create 4M")
    program.ask("plain 2M")
    program.ask("fill 1 5")
    before = program.ask("sum 1")
    program.ask("unmap 2")
    assert driver.cuCheckpointProcessLock(program.pid, None) == 0
    assert driver.cuCheckpointProcessCheckpoint(program.pid, None) == 0
    assert descriptors(program.pid) == []
    assert driver.cuCheckpointProcessRestore(program.pid, None) == 0
    assert len(descriptors(program.pid)) == 2
    assert driver.cuCheckpointProcessUnlock(program.pid, None) == 0
    assert program.ask("sum 1") == before
    program.ask("map 2")
    program.ask("fill 2 1")


def test_imported_memory_is_not_restored(driver: ctypes.CDLL, program: Program) -> None:
    program.ask("import 2M")
    program.ask("create 2M")
    assert driver.cuCheckpointProcessLock(program.pid, None) == 0
    assert driver.cuCheckpointProcessCheckpoint(program.pid, None) == 0
    assert driver.cuCheckpointProcessRestore(program.pid, None) == NOT_SUPPORTED


def test_restored_on_another_gpu(cuda: FakeCuda, driver: ctypes.CDLL) -> None:
    """From then on that is what the process has, and what its memory is of."""
    old, new = (uuid_bytes(numbered(H100, index).uuid) for index in (0, 3))
    pairs = ctypes.create_string_buffer(old + new, 32)
    args = struct.pack("<QI52x", ctypes.addressof(pairs), 1)
    with Program(cuda) as program:
        program.ask("create 2M")
        before = memory_of(program)
        assert driver.cuCheckpointProcessLock(program.pid, None) == 0
        assert driver.cuCheckpointProcessCheckpoint(program.pid, None) == 0
        assert driver.cuCheckpointProcessRestore(program.pid, args) == 0
        assert driver.cuCheckpointProcessUnlock(program.pid, None) == 0
        assert (before, memory_of(program)) == (old, new)
