"""Programs that make VMM memory themselves: the GPU memory library has virtual handles for it."""

from __future__ import annotations

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu import WAYS, Program, Refused
from fakes.gpu_conversation import LIBRARY, Conversation

from .conftest import about

MIB = 1 << 20
INVALID_VALUE = 1
NOT_SUPPORTED = 801


def moved(program: Program) -> int:
    """Take the memory out of the process and bring it back: how many pieces that were."""
    with Conversation(program.pid) as library:
        return len(library.moved())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("make", "asked"), [("create", "1"), ("plain", "0")])
def test_what_a_program_makes_can_be_moved(cuda: FakeCuda, way: str, make: str, asked: str) -> None:
    with Program(cuda, way, preload=LIBRARY) as program:
        before = program.ask("info")
        number = program.number(f"{make} 6M")
        assert about(program) == (6 * MIB, {})
        assert program.ask(f"props {number}") == f"{asked} 0"
        assert program.ask(f"access {number} 0") == "3"
        program.ask(f"fill {number} 9")
        filled = program.ask(f"sum {number}")
        assert moved(program) == 1
        assert program.ask(f"sum {number}") == filled
        assert program.ask(f"retain {number}") == "same"
        assert program.ask(f"props {number}") == f"{asked} 0"
        program.ask(f"free {number}")
        assert about(program) == (0, {})
        assert program.ask("info") == before


def test_memory_lives_while_it_is_mapped(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        before = program.ask("info")
        number = program.number("plain 4M")
        program.ask(f"fill {number} 9")
        filled = program.ask(f"sum {number}")
        program.ask(f"release {number}")
        assert about(program) == (4 * MIB, {})
        assert moved(program) == 1
        assert program.ask(f"sum {number}") == filled
        program.ask(f"free {number}")
        assert about(program) == (0, {})
        assert program.ask("info") == before


def test_memory_lives_while_a_handle_is_held(cuda: FakeCuda) -> None:
    """As vLLM's sleeping allocator and PyTorch's expandable segments have it."""
    with Program(cuda, preload=LIBRARY) as program:
        number = program.number("plain 4M")
        program.ask(f"fill {number} 9")
        filled = program.ask(f"sum {number}")
        program.ask(f"unmap {number}")
        assert about(program) == (4 * MIB, {})
        assert moved(program) == 1
        program.ask(f"map {number}")
        assert program.ask(f"sum {number}") == filled


def test_a_handle_that_was_released_is_none(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        number = program.number("plain 4M")
        program.ask(f"retain {number}")
        program.ask(f"unmap {number}")
        program.ask(f"map {number}")
        # The program takes its own handle for gone from here on, and the library has none.
        program.ask(f"release {number}")
        with pytest.raises(Refused) as refused:
            program.ask(f"props {number}")
        assert refused.value.call == "cuMemGetAllocationPropertiesFromHandle"


def test_what_was_exported_stays(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        number, other = program.number("create 4M"), program.number("create 2M")
        program.ask(f"export {number}")
        assert about(program) == (2 * MIB, {"exported": 4 * MIB})
        program.ask(f"fill {number} 1")
        filled = program.ask(f"sum {number}")
        assert moved(program) == 1
        assert program.ask(f"sum {number}") == filled
        program.ask(f"free {other}")
        program.ask(f"free {number}")
        assert about(program) == (0, {})


def test_what_cannot_be_exported_is_not(cuda: FakeCuda) -> None:
    """The library has made it exportable, for itself: the program has not asked for that."""
    with Program(cuda, preload=LIBRARY) as program:
        number = program.number("plain 4M")
        with pytest.raises(Refused) as refused:
            program.ask(f"export {number}")
        assert refused.value.result == INVALID_VALUE
        assert about(program) == (4 * MIB, {})


def test_imported_memory_is_told_of(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        program.ask("alloc 2M")
        number = program.number("import 4M")
        assert about(program)[0] == 2 * MIB
        assert about(program)[1]["imported"] == 4 * MIB
        program.ask(f"free {number}")
        assert "imported" not in about(program)[1]


def test_what_cannot_be_made_exportable_is_made_as_it_was_asked_for(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        cuda.answer("cuMemCreate", NOT_SUPPORTED)
        number = program.number("plain 4M")
        assert about(program) == (0, {"other": 4 * MIB})
        assert program.ask(f"fill {number} 1") == "filled"
        assert moved(program) == 0
        program.ask(f"free {number}")
        assert about(program) == (0, {})


def test_without_room_the_program_hears_of_it(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY, memory=4 * MIB) as program:
        program.ask("create 2M")
        with pytest.raises(Refused) as refused:
            program.ask("create 4M")
        assert (refused.value.result, refused.value.call) == (2, "cuMemCreate")
        assert about(program) == (2 * MIB, {})


def test_what_cu_mem_alloc_gave_has_no_handle(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        number = program.number("alloc 4M")
        for command in ("unmap", "retain"):
            with pytest.raises(Refused) as refused:
                program.ask(f"{command} {number}")
            assert refused.value.result == INVALID_VALUE
        assert about(program) == (4 * MIB, {})


def test_a_failing_map_and_unmap_change_nothing(cuda: FakeCuda) -> None:
    with Program(cuda, preload=LIBRARY) as program:
        number = program.number("plain 4M")
        program.ask(f"fill {number} 5")
        filled = program.ask(f"sum {number}")
        cuda.answer("cuMemUnmap", 999)
        with pytest.raises(Refused):
            program.ask(f"unmap {number}")
        assert moved(program) == 1
        assert program.ask(f"sum {number}") == filled
        program.ask(f"unmap {number}")
        cuda.answer("cuMemMap", 999)
        with pytest.raises(Refused):
            program.ask(f"map {number}")
        assert moved(program) == 1
        program.ask(f"map {number}")
        assert program.ask(f"sum {number}") == filled
