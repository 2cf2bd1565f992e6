"""Programs that know nothing of the GPU memory library: what they get, and what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu import WAYS, Program, Refused
from fakes.gpu_conversation import LIBRARY, Conversation

from shim.gpu.memory import marker
from shim.gpu.memory.wire import RDMA, Kind

from .conftest import about

MIB = 1 << 20
NOT_SUPPORTED = 801
OUT_OF_MEMORY = 2
INVALID_VALUE = 1
NOT_INITIALIZED = 3


def shown(program: Program, memory: int) -> list[str]:
    """What a program can find out about an address."""
    return [program.ask(f"{question} {memory}") for question in ("range", "attr")]


@pytest.mark.parametrize("way", WAYS)
def test_large_allocations_can_be_moved_and_look_like_the_drivers(cuda: FakeCuda, way: str) -> None:
    with Program(cuda, way) as bare, Program(cuda, way, preload=LIBRARY) as program:
        sizes = ["4M", "2M", "5000001"]
        numbers = [program.number(f"alloc {size}") for size in sizes]
        assert about(program) == (12 * MIB, {})
        for size, number in zip(sizes, numbers, strict=True):
            other = bare.number(f"alloc {size}")
            assert shown(program, number) == shown(bare, other)
            for each, memory in ((bare, other), (program, number)):
                each.ask(f"fill {memory} 7")
            assert program.ask(f"sum {number}") == bare.ask(f"sum {other}")
        for number in numbers:
            program.ask(f"free {number}")
        assert about(program) == (0, {})


@pytest.mark.parametrize("way", WAYS)
def test_what_is_small_or_of_another_kind_is_counted_and_left(cuda: FakeCuda, way: str) -> None:
    with Program(cuda, way, preload=LIBRARY) as program:
        program.ask("alloc 2M")
        made = {
            kind: program.number(command)
            for kind, command in {
                "small": "alloc 64K",
                "pool": "async 3M",
                "managed": "managed 4M",
                "other": "pitch 4096 1024",
            }.items()
        }
        left = {"small": 64 << 10, "pool": 3 * MIB, "managed": 4 * MIB, "other": 4 * MIB}
        assert about(program) == (2 * MIB, left)
        for kind, number in made.items():
            program.ask(f"free {number}")
            del left[kind]
            assert about(program) == (2 * MIB, left)


def test_the_per_thread_default_streams_functions_are_taken_over_too(cuda: FakeCuda) -> None:
    with Program(cuda, "entry", preload=LIBRARY, PER_THREAD="1") as program:
        number = program.number("alloc 2M")
        program.ask("async 1M")
        assert about(program) == (2 * MIB, {"pool": MIB})
        program.ask(f"fill {number} 1")
        with Conversation(program.pid) as library:
            assert not library.hold().status
            program.tell(f"fill {number} 1")
            assert not library.ask(Kind.OPEN).status
        assert program.answer() == "filled"


def test_many_small_allocations_are_all_remembered(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        program.ask("alloc 2M")
        numbers = [program.number("alloc 4K") for _ in range(1500)]
        assert about(program)[1] == {"small": 1500 * 4096}
        for number in numbers[::2] + numbers[1::2]:
            program.ask(f"free {number}")
        assert about(program) == (2 * MIB, {})


def test_no_thread_and_no_marker_before_the_first_large_allocation(cuda: FakeCuda) -> None:
    with Program(cuda) as bare, Program(cuda, preload=LIBRARY) as program:
        for each in (bare, program):
            each.ask("alloc 1M")
        assert marker.find(program.pid) is None
        threads = [len(list(Path(f"/proc/{p.pid}/task").iterdir())) for p in (bare, program)]
        assert threads[0] == threads[1]
        program.ask("alloc 2M")
        assert marker.find(program.pid) is not None


def test_a_program_may_opt_out(cuda: FakeCuda) -> None:
    for way in WAYS:
        with Program(cuda, way, preload=LIBRARY, THAW_GPU_MEMORY="driver") as program:
            number = program.number("alloc 4M")
            vmm = program.number("create 4M")
            assert program.ask(f"fill {vmm} 1") == program.ask(f"fill {number} 1") == "filled"
            assert marker.find(program.pid) is None


@pytest.mark.parametrize("call", ["cuMemAddressReserve", "cuMemCreate", "cuMemMap"])
@pytest.mark.parametrize("result", [NOT_SUPPORTED, OUT_OF_MEMORY, INVALID_VALUE])
def test_what_cannot_be_had_as_vmm_memory_comes_from_the_driver(
    cuda: FakeCuda, call: str, result: int
) -> None:
    again = call == "cuMemCreate" and result != OUT_OF_MEMORY  # for less than it would like
    cuda.answer(call, *[result] * (1 + again))
    with Program(cuda, preload=LIBRARY) as program:
        number = program.number("alloc 4M")
        assert about(program) == (0, {"other": 4 * MIB})
        assert program.ask(f"fill {number} 1") == "filled"
        program.ask(f"free {number}")
        program.ask("alloc 4M")
        unable = call == "cuMemCreate" and result == NOT_SUPPORTED
        assert about(program) == ((0, {"other": 4 * MIB}) if unable else (4 * MIB, {}))


def flags(program: Program) -> list[int]:
    """Of all that can be moved."""
    with Conversation(program.pid) as library:
        assert not library.hold().status
        memory, _ = library.export()
        assert not library.ask(Kind.OPEN).status
        return [piece.flags for piece in memory]


def test_network_cards_reach_it_as_they_reach_the_drivers(cuda: FakeCuda) -> None:
    """Where they reach any; a program's own VMM memory is what that asks for."""
    with Program(cuda, preload=LIBRARY) as program:
        program.ask("alloc 2M")
        program.ask("plain 2M")
        assert flags(program) == [RDMA, 0]
        cuda.answer("cuMemCreate", NOT_SUPPORTED)
        program.ask("alloc 2M")
        program.ask("alloc 2M")
        assert flags(program) == [RDMA, 0, 0, 0]
    (cuda.folder / "no-rdma").touch()
    with Program(cuda, preload=LIBRARY) as program:
        program.ask("alloc 2M")
        assert flags(program) == [0]


def test_a_finer_granularity_than_what_is_moved(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY, THAW_FAKE_GRANULARITY="65536") as program:
        program.ask("alloc 2162688")
        assert about(program) == (4 * MIB, {})
        number = program.number("plain 192K")
        program.ask("plain 2M")
        assert about(program) == (6 * MIB, {"other": 192 << 10})
        program.ask(f"free {number}")
        assert about(program) == (6 * MIB, {})


def test_access_that_is_refused_gives_all_back(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        before = program.ask("info")
        cuda.answer("cuMemSetAccess", INVALID_VALUE)
        number = program.number("alloc 4M")
        assert about(program) == (0, {"other": 4 * MIB})
        program.ask(f"free {number}")
        assert program.ask("info") == before


def test_without_room_the_program_hears_of_it(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY, memory=16 * MIB) as program:
        number = program.number("alloc 8M")
        with pytest.raises(Refused) as refused:
            program.ask("alloc 16M")
        assert (refused.value.result, refused.value.call) == (OUT_OF_MEMORY, "cuMemAlloc")
        program.ask(f"free {number}")
        program.ask("alloc 16M")
        assert about(program) == (16 * MIB, {})


def test_an_older_driver_keeps_its_memory(tmp_path: Path) -> None:
    cuda = FakeCuda(tmp_path, without=("cuMemGetAllocationGranularity",))
    with Program(cuda, preload=LIBRARY) as program:
        assert program.ask(f"fill {program.number('alloc 4M')} 1") == "filled"
        assert about(program) == (0, {"other": 4 * MIB})


def test_ipc_is_refused_for_what_can_be_moved_and_said_once(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        large, small = program.number("alloc 4M"), program.number("alloc 64K")
        for _ in range(2):
            with pytest.raises(Refused) as refused:
                program.ask(f"ipc {large}")
            assert refused.value.result == NOT_SUPPORTED
        assert program.ask(f"ipc {small}") == "handle"
        assert about(program) == (4 * MIB, {"exported": 64 << 10})
        status, said = program.end()
        assert status == 0
        assert said.count("thaw:") == said.count("CUDA IPC") == 1


def test_peers_reach_memory_that_was_there_and_that_comes_later(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY, gpus="0,1") as program:
        early = program.number("alloc 4M")
        program.ask("device 1")
        assert program.ask(f"access {early} 1") == "0"
        program.ask("peer 0")
        assert program.ask(f"access {early} 1") == "3"
        own = program.number("alloc 4M")
        program.ask(f"copy {own} {early}")
        program.ask("device 0")
        late = program.number("alloc 4M")
        assert [program.ask(f"access {late} {device}") for device in (0, 1)] == ["3", "3"]
        assert [program.ask(f"access {own} {device}") for device in (0, 1)] == ["0", "3"]
        program.ask("device 1")
        program.ask("nopeer 0")
        found = [program.ask(f"access {n} 1") for n in (early, late, own)]
        assert found == ["0", "0", "3"]


def test_threads_allocate_and_free_at_the_same_time(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        before = program.ask("info")
        program.ask("threads 8 40 2M")
        program.ask("threads 8 40 4K")
        assert about(program) == (0, {})
        assert program.ask("info") == before


def test_a_child_goes_on_without_the_library(cuda: FakeCuda) -> None:
    """The driver has nothing for it, and it is told so rather than kept waiting."""
    with Program(cuda, preload=LIBRARY) as program:
        number = program.number("alloc 4M")
        assert program.ask("fork") == str(NOT_INITIALIZED)
        with Conversation(program.pid) as library:
            assert not library.hold().status
            program.ask("info")
            assert program.ask("fork") == str(NOT_INITIALIZED)
            assert not library.ask(Kind.OPEN).status
        assert program.ask(f"fill {number} 1") == "filled"


def test_a_graph_fills_what_was_moved(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        number = program.number("alloc 4M")
        program.ask(f"capture {number} 3")
        program.ask("replay")
        filled = program.ask(f"sum {number}")
        program.ask(f"set {number} 0")
        with Conversation(program.pid) as library:
            library.moved()
        program.ask("replay")
        assert program.ask(f"sum {number}") == filled
