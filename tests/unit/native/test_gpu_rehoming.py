"""GPU memory for which the driver makes no descriptor any more: the library copies it to other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.cuda import PASS, FakeCuda
from fakes.gpu import Program, sums
from fakes.gpu_conversation import LIBRARY, Conversation
from fakes.gpu_script import script

from shim.gpu.memory.wire import RDMA, Kind, Memory, State, Status

from .conftest import open_descriptors

MIB = 1 << 20
FAILURE = 999
OUT_OF_MEMORY = 2
INVALID_VALUE = 1


@pytest.fixture
def cuda(cuda: FakeCuda) -> FakeCuda:
    """A driver that exports nothing that came from another process."""
    (cuda.folder / "own-only").touch()
    return cuda


@pytest.fixture
def program(cuda: FakeCuda) -> Iterator[Program]:
    """With memory that was given back to it: mapped, and without a handle or without addresses."""
    with Program(cuda, preload=LIBRARY) as started:
        started.filled("alloc 4M", "plain 2M", "plain 6M")
        started.ask("release 2")
        with Conversation(started.pid) as library:
            library.moved()
            assert library.about().given
        yield started


def kept(program: Program) -> tuple[str, int]:
    """What it has, and how many descriptors."""
    return program.ask("info"), open_descriptors(program)


def test_it_is_taken_again_and_again(program: Program, library: Conversation) -> None:
    before = sums(program)
    program.ask("unmap 3")
    ids = []
    for _ in range(3):
        assert not library.hold().status
        memory, fds = library.export()
        ids.append([piece.id for piece in memory])
        assert [(piece.size, piece.flags) for piece in memory] == [
            (4 * MIB, RDMA),
            (2 * MIB, 0),
            (6 * MIB, 0),
        ]
        assert not library.about().given
        assert not library.ask(Kind.EMPTY).status
        assert not library.give(memory, fds).status
        assert not library.ask(Kind.OPEN).status
        assert library.about().given
    assert ids == [ids[0]] * 3
    program.ask("map 3")
    assert sums(program) == before
    for number in (1, 2, 3):
        program.ask(f"fill {number} 9")
        program.ask(f"free {number}")
    assert library.about().movable == 0
    assert not library.about().given


def test_it_is_the_programs_own_then(program: Program, library: Conversation) -> None:
    """An engine that gives up then leaves a process that the driver can restore."""
    before = sums(program)
    assert not library.hold().status
    library.export()
    assert not library.ask(Kind.OPEN).status
    assert not library.about().given
    assert sums(program) == before
    program.ask("fill 1 77")
    assert sums(program)[1:] == before[1:]
    library.moved()


def test_all_addresses_keep_what_they_had(cuda: FakeCuda) -> None:
    """Parts of one piece at several places, and who may reach them."""
    body = """
memory, at, size = c_uint64(), c_uint64(), 4 << 20
wanted, flags = (c_int * 8)(1, 0, 1, 0, 0, 0, 0, 0), c_uint64()
call("cuMemCreate", byref(memory), c_size_t(size), wanted, c_uint64(0))
call("cuMemAddressReserve", byref(at), c_size_t(2 * size), c_size_t(0), c_uint64(0), c_uint64(0))
def place(where, length, offset, devices):
    address = c_uint64(at.value + where)
    call("cuMemMap", address, c_size_t(length), c_size_t(offset), memory, c_uint64(0))
    for device, right in devices:
        access = (c_int * 3)(1, device, right)
        call("cuMemSetAccess", address, c_size_t(length), access, c_size_t(1))
    return address
def reached(address):
    rights = []
    for device in (0, 1):
        call("cuMemGetAccess", byref(flags), (c_int * 2)(1, device), address)
        rights.append(flags.value)
    return rights
whole = place(0, size, 0, [(0, 3), (1, 1)])
half = place(size, size // 2, size // 2, [(0, 1)])
call("cuMemsetD8_v2", c_uint64(whole.value + size // 2), 7, c_size_t(size // 2))
def check(value):
    found = ctypes.create_string_buffer(size)
    call("cuMemcpyDtoH_v2", found, whole, c_size_t(size))
    assert found.raw == bytes(size // 2) + bytes([value]) * (size // 2)
    call("cuMemcpyDtoH_v2", found, half, c_size_t(size // 2))
    assert found.raw[: size // 2] == bytes([value]) * (size // 2)
    assert (reached(whole), reached(half)) == ([3, 1], [1, 0])
check(7)
stop("moved")
stop("moved again")
check(7)
call("cuMemsetD8_v2", c_uint64(whole.value + size // 2), 8, c_size_t(size // 2))
check(8)
"""
    with script(cuda, body) as started:
        for word in ("moved", "moved again"):
            started.reach(word)
            with Conversation(started.pid) as library:
                library.moved()
            started.go_on()
        started.end()


def test_what_the_driver_has_restored_itself_may_be_refused_too(tmp_path: Path) -> None:
    cuda = FakeCuda(tmp_path)
    with Program(cuda, preload=LIBRARY) as program:
        program.filled("alloc 4M", "plain 2M", "plain 6M")
        before, had = sums(program), kept(program)
        cuda.answer("cuMemExportToShareableHandle", INVALID_VALUE)
        with Conversation(program.pid) as library:
            assert not library.hold().status
            library.export()
            assert not library.ask(Kind.OPEN).status
        assert (sums(program), kept(program)) == (before, had)


# What is called for one piece, at one address: which of these calls fails, and after how many.
FAILURES = [
    ("cuMemCreate", 0),
    ("cuMemAddressReserve", 0),
    ("cuMemMap", 0),
    ("cuMemMap", 1),
    ("cuMemMap", 2),
    ("cuMemSetAccess", 0),
    ("cuMemSetAccess", 1),
    ("cuMemSetAccess", 2),
    ("cuMemcpyDtoDAsync_v2", 0),
    ("cuMemUnmap", 2),
]


@pytest.mark.parametrize(("call", "after"), FAILURES)
def test_what_fails_leaves_all_as_it_was(
    cuda: FakeCuda, program: Program, library: Conversation, call: str, after: int
) -> None:
    before, had = sums(program), kept(program)
    cuda.answer(call, *[PASS] * after, FAILURE)
    assert not library.hold().status
    answer = library.ask(Kind.EXPORT)
    assert (answer.status, answer.value) == (Status.CUDA, FAILURE)
    assert answer.text == call.removesuffix("_v2")
    assert answer.state is State.HELD
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert (sums(program), kept(program)) == (before, had)
    library.moved()
    assert sums(program) == before


def test_what_is_refused_even_so_is_told(
    cuda: FakeCuda, program: Program, library: Conversation
) -> None:
    before = sums(program)
    cuda.answer("cuMemExportToShareableHandle", INVALID_VALUE, FAILURE)
    assert not library.hold().status
    answer = library.ask(Kind.EXPORT)
    assert (answer.status, answer.value) == (Status.CUDA, FAILURE)
    assert answer.text == "cuMemExportToShareableHandle"
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before
    library.moved()
    assert sums(program) == before


def test_no_second_one_is_made_where_there_is_no_room_for_less(
    cuda: FakeCuda, program: Program, library: Conversation
) -> None:
    cuda.answer("cuMemExportToShareableHandle", OUT_OF_MEMORY)
    assert not library.hold().status
    answer = library.ask(Kind.EXPORT)
    assert (answer.status, answer.value) == (Status.CUDA, OUT_OF_MEMORY)
    assert answer.text == "cuMemExportToShareableHandle"
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert library.about().given


def test_without_room_for_a_second_one_it_stays(
    cuda: FakeCuda, program: Program, library: Conversation
) -> None:
    before = sums(program)
    cuda.answer("cuMemCreate", OUT_OF_MEMORY)
    assert not library.hold().status
    answer = library.ask(Kind.EXPORT)
    assert (answer.status, answer.value, answer.text) == (Status.CUDA, OUT_OF_MEMORY, "cuMemCreate")
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before


@pytest.mark.parametrize("given", [False, True])
def test_what_can_be_mapped_neither_way_comes_back_before_it_goes_on(
    cuda: FakeCuda, program: Program, library: Conversation, given: bool
) -> None:
    """The process still has it, whatever else it is given for that."""
    before = sums(program)
    cuda.answer("cuMemMap", PASS, PASS, FAILURE, FAILURE, FAILURE)
    assert not library.hold().status
    answer = library.ask(Kind.EXPORT)
    assert (answer.status, answer.state) == (Status.CUDA, State.EMPTIED)
    answer = library.ask(Kind.OPEN)
    assert (answer.status, answer.state) == (Status.MISSING, State.EMPTIED)
    if given:
        with open("/dev/null", "rb") as nothing:
            assert not library.give([Memory(1, 4 * MIB, 0)], [nothing.fileno()]).status
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before
