"""The engine's side and the library's, together: programs keep what they have, wherever it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu import Program
from fakes.gpu_conversation import LIBRARY
from fakes.moving import movement

from shim.errors import GpuFailed, Unfit
from shim.gpu.memory import suspend
from shim.gpu.memory.device import Memory
from shim.gpu.memory.suspend import ask

from .conftest import GPU, MIB

MADE = ["alloc 4M", "create 8M", "alloc 2M", "alloc 1M"]


@pytest.fixture
def program(cuda: FakeCuda) -> Iterator[Program]:
    with Program(cuda, preload=LIBRARY) as started:
        started.filled(*MADE)
        started.ask("set 2 0")  # all zeros
        yield started


def sums(program: Program) -> list[str]:
    return [program.ask(f"sum {number + 1}") for number in range(len(MADE))]


@pytest.mark.parametrize("own_only", [False, True])
def test_again_and_again(
    cuda: FakeCuda, memory: Memory, program: Program, tmp_path: Path, own_only: bool
) -> None:
    """Also with a driver that exports nothing that came from another process, as we are one."""
    if own_only:
        (cuda.folder / "own-only").touch()
    before = sums(program)
    for count in range(3):
        folder = tmp_path / str(count)
        folder.mkdir()
        with movement(memory, [program], seconds=10.0) as moved:
            regions = moved.regions(program.pid)
            moved.save([folder], [program.pid])
            moved.give_back()
            assert sums(program) == before
            saved = moved.finish()
        assert [region.size for region in regions] == [4 * MIB, 8 * MIB, 2 * MIB]
        assert {region.gpu for region in regions} == {GPU.uuid}
        assert (saved.stored, saved.total) == (6 * MIB, 14 * MIB)


def test_what_stays(memory: Memory, program: Program) -> None:
    program.ask("async 3M")
    found = ask([program.pid], lambda _: "none")[program.pid]
    assert found.about is not None
    assert found.about.movable == 14 * MIB
    assert found.left["pool"] >= 3 * MIB
    assert found.left["small"] >= MIB
    suspend.close([found])


def test_memory_of_another(program: Program) -> None:
    program.ask("import 4M")
    with pytest.raises(Unfit, match="GPU memory of another process mapped"):
        ask([program.pid], lambda _: "none")
    assert program.ask("sum 1")


@pytest.mark.parametrize("call", ["cuMemUnmap", "cuMemRelease", "cuMemExportToShareableHandle"])
def test_its_driver_refuses(memory: Memory, program: Program, cuda: FakeCuda, call: str) -> None:
    """At whichever piece: it goes on, and can be taken at the next attempt."""
    before = sums(program)
    refusals = [999] * (2 if "Export" in call else 1)  # of a copy in other memory, too
    for count in range(3):
        cuda.answer(call, *([-1] * count), *refusals, pid=program.pid)
        with pytest.raises(GpuFailed, match=call), movement(memory, [program], seconds=10.0):
            pytest.fail("it did not fail")
        assert sums(program) == before
    with movement(memory, [program], seconds=10.0):
        pass
    assert sums(program) == before


def test_work_is_held(memory: Memory, program: Program) -> None:
    """A program that launches all the time is none the wiser."""
    before = sums(program)[1:]
    program.ask("spin 1")
    with movement(memory, [program], seconds=10.0):
        pass
    assert int(program.ask("rest")) > 0
    assert sums(program)[1:] == before
