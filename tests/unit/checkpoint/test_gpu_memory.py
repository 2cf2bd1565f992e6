"""A worker with GPU memory of which most is moved past the driver: what of it is in a snapshot."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.dumping import SPEC, Criu, left, made, work_of
from fakes.gpu import Program, sums
from fakes.gpu_conversation import LIBRARY, Conversation
from fakes.gpu_engine import Engine
from fakes.nvml import H100, FakeNvml, machine, numbered

from shim.checkpoint import engine
from shim.checkpoint.device import recover
from shim.checkpoint.engine import checkpoint
from shim.checkpoint.pages import Plain
from shim.config import Config
from shim.errors import CheckpointFailed, GpuFailed, GpuLost, StoreFull, Unfit
from shim.gpu.memory import saving, suspend
from shim.gpu.memory.index import stored
from shim.runc import Runc
from shim.snapshot.cuda import CudaProcess
from shim.snapshot.pack import unpacked
from shim.snapshot.snapshot import open_at
from shim.snapshot.verification import verify
from shim.work import Work

MIB = 1 << 20
NODE = {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}
ON_GPU = {"linux": {**SPEC["linux"], "devices": [NODE]}}
GPU = numbered(H100, 0).uuid


@pytest.fixture
def work(tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Work:
    """A container with one GPU, of which this process is the init."""
    (tmp_path / "nvml.lib").mkdir()
    nvml = FakeNvml(tmp_path / "nvml.lib")
    nvml.use(monkeypatch)
    nvml.has(machine(H100))
    plain = work_of(tmp_path, ON_GPU)
    (tmp_path / "upper" / "written").write_text("by the worker")
    return changed(plain, {"gpu.library": cuda.library, "checkpoint.engine": "criu"})


def changed(work: Work, values: dict[str, Any], **details: Any) -> Work:
    return Work.parse({**work.raw, "config": {**work.raw["config"], **values}, **details})


@pytest.fixture
def program(cuda: FakeCuda) -> Iterator[Program]:
    """With two pieces that are moved, one of them all zeros, and one that is not."""
    with Program(cuda, preload=LIBRARY) as started:
        for number, size in enumerate(("4M", "2M", "64K"), 1):
            started.ask(f"alloc {size}")
            started.ask(f"fill {number} {number}" if number != 2 else "set 2 0")
        yield started


def test_what_is_in_the_snapshot(work: Work, criu: Criu, program: Program, tmp_path: Path) -> None:
    before = sums(program)
    said = checkpoint(changed(work, {"audit.log": f"{tmp_path}/audit"}))["gpu"]
    assert json.loads((tmp_path / "audit").read_text())["gpu"] == "library"
    assert sums(program) == before
    snapshot = made(tmp_path)
    [process] = snapshot.config.gpu.processes
    sizes = [(region.size, region.gpu) for region in process.regions]
    assert sizes == [(4 * MIB, GPU), (2 * MIB, GPU)]
    assert (process.left, process.reason) == ({"small": 64 << 10}, "")
    assert snapshot.config.pages["gpu-1.img.0000"] == 4 * MIB
    assert "index/gpu" in snapshot.config.files
    found = stored(snapshot)
    assert found is not None
    assert (found.bytes, found.regions) == (4 * MIB, [4 * MIB, 2 * MIB])
    assert (said["gib"], said["stored"]) == ("0.006", "0.004")
    assert said["left"] == "small 0.1 MiB"
    assert "driver" not in said
    assert verify(snapshot, Config(work.raw["config"])).faults == []


def test_a_damaged_piece_is_found(work: Work, criu: Criu, program: Program, tmp_path: Path) -> None:
    checkpoint(work)
    snapshot = made(tmp_path)
    with open(snapshot.piece("gpu-1.img.0000"), "r+b") as file:
        file.write(b"x")
    [fault] = verify(snapshot, Config(work.raw["config"])).faults
    assert "gpu-1.img.0000 at 0 (4194304 bytes) has another checksum" in fault


def test_a_dump_that_is_done_in_another_way(
    work: Work, criu: Criu, program: Program, tmp_path: Path
) -> None:
    """What the first way has left is taken away, and this is not of it."""
    before = sums(program)
    checkpoint(changed(work, {"checkpoint.engine": "native"}))
    assert sums(program) == before
    assert verify(made(tmp_path), Config(work.raw["config"])).faults == []


@pytest.mark.parametrize("engine", ["criu", "native"])
def test_into_a_folder_of_containerds(
    work: Work, criu: Criu, program: Program, tmp_path: Path, engine: str
) -> None:
    before = sums(program)
    images = tmp_path / "images"
    images.mkdir()
    checkpoint(changed(work, {"checkpoint.engine": engine}, name="", path=str(images)))
    assert sums(program) == before
    extras = unpacked(images)
    assert extras is not None
    snapshot = open_at(extras, images=images)
    found = stored(snapshot)
    assert found is not None
    assert found.paths == [images / "gpu-1.img.0000"]
    assert found.bytes == 4 * MIB


def test_one_that_shall_end(
    work: Work, criu: Criu, program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def dump(_runc: Runc, options: Sequence[str]) -> None:
        criu.dump(options)
        program.process.kill()
        program.process.wait()

    monkeypatch.setattr(Runc, "checkpoint", dump)
    checkpoint(changed(work, {}, exit=True))
    assert criu.published, "it was whole before anybody was killed"
    assert verify(made(tmp_path), Config(work.raw["config"])).faults == []


def test_without_the_library(work: Work, criu: Criu, cuda: FakeCuda, tmp_path: Path) -> None:
    with Program(cuda) as plain:
        plain.ask("alloc 4M")
        plain.ask("fill 1 1")
        before = plain.ask("sum 1")
        said = checkpoint(work)["gpu"]
        assert plain.ask("sum 1") == before
        inside = plain.pid
    why = "its container was created without the library (the log then says why)"
    assert said == {"driver": f"{inside}: {why}"}
    assert made(tmp_path).config.gpu.processes == [CudaProcess(inside, [], reason=why)]
    assert stored(made(tmp_path)) is None


def test_an_engine_without_the_calls(
    work: Work, criu: Criu, program: Program, tmp_path: Path
) -> None:
    """A driver too old for that has all of it: whoever it is has never been given anything back."""
    old = FakeCuda(tmp_path / "old", without=("cuMemExportToShareableHandle",))
    said = checkpoint(changed(work, {"gpu.library": old.library}))["gpu"]
    assert "cuMemExportToShareableHandle" in said["driver"]
    [process] = made(tmp_path).config.gpu.processes
    assert (process.regions, process.reason) == ([], said["driver"])


def test_somebody_else_has_it_too(
    work: Work, criu: Criu, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the next engine to ask, as long as it is away."""
    seen = []

    def dump(_runc: Runc, options: Sequence[str]) -> None:
        seen.append((work.folder / "keeper.sock").is_socket())
        criu.dump(options)

    monkeypatch.setattr(Runc, "checkpoint", dump)
    checkpoint(work)
    assert seen == [True]
    assert not (work.folder / "keeper.sock").exists()


BY_DRIVER = {"gpu.memory": "driver"}


def test_the_driver_alone(work: Work, criu: Criu, program: Program, tmp_path: Path) -> None:
    """If that was decided while it ran, the library being there is no matter."""
    before = sums(program)
    said = checkpoint(changed(work, {**BY_DRIVER, "audit.log": f"{tmp_path}/audit"}))["gpu"]
    assert said["driver"] == "gpu.memory says driver"
    line = json.loads((tmp_path / "audit").read_text())
    assert (line["outcome"], line["gpu"]) == ("made", "driver: gpu.memory says driver")
    [process] = made(tmp_path).config.gpu.processes
    assert (process.regions, process.reason) == ([], said["driver"])
    assert sums(program) == before


@pytest.mark.parametrize("why", ["gpu.memory says driver", "cuMemExportToShareableHandle"])
def test_the_driver_alone_too_late(
    work: Work, criu: Criu, program: Program, tmp_path: Path, cuda: FakeCuda, why: str
) -> None:
    """After one snapshot there is memory that it could not restore: it is not even tried."""
    before = sums(program)
    checkpoint(work)
    asked = cuda.asked()
    old = FakeCuda(tmp_path / "old", without=("cuMemExportToShareableHandle",))
    alone = BY_DRIVER if "says driver" in why else {"gpu.library": old.library}
    with pytest.raises(Unfit, match=f"given back to it.*{why}.*could not restore it") as refused:
        checkpoint(changed(work, alone, name="other"))
    assert "restart the container" in refused.value.hint
    assert cuda.asked() == asked, "it was known before anything was touched"
    assert sums(program) == before
    for number in (1, 2):
        program.ask(f"free {number}")
    checkpoint(changed(work, alone, name="other"))
    assert program.ask("sum 3") == before[2]


@pytest.mark.parametrize("moved", [True, False])
def test_how_much_may_wait_for_the_disk(
    work: Work, criu: Criu, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """Of both kinds of memory together: they are read at the same time."""
    told: list[tuple[str, int]] = []

    def of_gpus(*words: Any) -> saving.Saving:
        told.append(("gpu", words[-1]))
        return saving.Saving(*words)

    def of_host(images: Path, _: int, budget: int, *, pages: Sequence[Path]) -> Plain:
        told.append(("host", budget))
        return Plain(images, pages=pages)

    monkeypatch.setattr(suspend, "Saving", of_gpus)
    monkeypatch.setattr(engine, "Parallel", of_host)
    with Program(cuda, preload=LIBRARY if moved else None) as program:
        program.ask("alloc 4M")
        program.ask("fill 1 1")
        checkpoint(changed(work, {"checkpoint.engine": "native", "checkpoint.memory": 1 / 16}))
    half = 32 * MIB
    assert told == ([("gpu", half), ("host", half)] if moved else [("host", 2 * half)])


def test_memory_of_others(work: Work, criu: Criu, program: Program, cuda: FakeCuda) -> None:
    program.ask("import 4M")
    with pytest.raises(Unfit, match="GPU memory of another process mapped"):
        checkpoint(work)
    assert cuda.asked() == []
    assert program.ask("sum 1")


def test_the_disk_is_full(
    work: Work,
    criu: Criu,
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> Any:
        raise OSError(28, "No space left on device")

    before = sums(program)
    monkeypatch.setattr(saving, "created", full)
    with pytest.raises(StoreFull):
        checkpoint(work)
    assert sums(program) == before
    assert left(tmp_path) == []


@pytest.mark.parametrize("call", ["Lock", "Checkpoint"])
def test_the_driver_refuses(
    work: Work, criu: Criu, program: Program, cuda: FakeCuda, tmp_path: Path, call: str
) -> None:
    before = sums(program)
    cuda.answer(call, 999)
    with pytest.raises(GpuFailed, match=call):
        checkpoint(work)
    assert sums(program) == before
    assert left(tmp_path) == []


def test_the_dump_fails(
    work: Work, criu: Criu, program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = sums(program)
    criu.fails_after = "on purpose"
    monkeypatch.setattr(Runc, "checkpoint", lambda _, options: criu.dump(options))
    with pytest.raises(CheckpointFailed, match="on purpose"):
        checkpoint(work)
    assert sums(program) == before
    assert left(tmp_path) == []


@pytest.fixture
def alone(work: Work, program: Program) -> Work:
    """The container of the program alone, which can be ended."""
    return changed(work, {}, pid=program.pid)


def hold(program: Program, *, empty: bool) -> None:
    """As an engine leaves it that dies."""
    with Conversation(program.pid) as library:
        if empty:
            library.emptied()
        else:
            assert not library.hold().status


def test_an_engine_died_that_held_it(alone: Work, program: Program) -> None:
    before = sums(program)
    hold(program, empty=False)
    recover(alone)
    assert sums(program) == before


def test_an_engine_was_killed_that_had_its_memory(alone: Work, program: Program) -> None:
    """It had told somebody of it before."""
    before = sums(program)
    with Engine(alone.folder, [program.pid]) as dead:
        dead.kill()
        recover(alone)
        assert dead.keeper_ended()
    assert sums(program) == before


def test_an_engine_died_that_had_its_memory(alone: Work, program: Program) -> None:
    """And nobody else has."""
    hold(program, empty=True)
    with pytest.raises(GpuLost, match=r"lost its GPU memory.*the container was ended"):
        recover(alone)
    assert program.process.wait() == -signal.SIGKILL
    assert os.path.exists(alone.folder / "dumping"), "nobody breaks off whoever has to say that"
