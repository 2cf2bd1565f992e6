"""A worker on GPUs is dumped: with nothing of it there meanwhile, and all of it afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.cuda_worker import Workers
from fakes.dumping import SPEC, Criu, left, made, work_of
from fakes.nvml import A100, GIB, H100, FakeNvml, machine, numbered
from fakes.settled import eventually
from fakes.talkers import answer, talker

from shim.cgroup import Cgroup
from shim.checkpoint import device
from shim.checkpoint.device import candidates, recover, suspended
from shim.checkpoint.engine import checkpoint
from shim.checkpoint.quiet import resume
from shim.errors import CheckpointFailed, FailedPrecondition, GpuFailed, GpuLost, Unfit
from shim.gpu.nvml import gpus
from shim.runc import Runc
from shim.snapshot.config import Gpu
from shim.snapshot.cuda import CudaState
from shim.timeline import Timeline
from shim.work import Work

OUT_OF_MEMORY = 2
NODE = {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 1}
ON_GPU = {"linux": {**SPEC["linux"], "devices": [NODE]}}


@pytest.fixture
def workers(cuda: FakeCuda) -> Iterator[Workers]:
    """Below this process, which stands for the container's init."""
    with Workers(cuda, 2) as started:
        yield started


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    (tmp_path / "nvml.lib").mkdir()
    fake = FakeNvml(tmp_path / "nvml.lib")
    fake.use(monkeypatch)
    fake.has(machine(A100, H100))
    return fake


@pytest.fixture
def on_gpu(tmp_path: Path, cuda: FakeCuda, nvml: FakeNvml) -> Work:
    """A container with the second GPU."""
    plain = work_of(tmp_path, ON_GPU)
    (tmp_path / "upper" / "written").write_text("by the worker")
    return with_config(plain, {"gpu.library": cuda.library, "checkpoint.engine": "criu"})


def with_config(work: Work, values: dict[str, Any], **details: Any) -> Work:
    config = {**work.raw["config"], **values}
    return Work.parse({**work.raw, "config": config, **details})


@pytest.fixture
def seen(criu: Criu, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What state the worker was in at each dump."""
    states: list[list[str]] = []

    def dump(_runc: Runc, options: Sequence[str]) -> None:
        states.append(workers.states)
        criu.dump(options)

    monkeypatch.setattr(Runc, "checkpoint", dump)
    return states


RUNNING, AWAY = ["running"] * 2, ["checkpointed"] * 2


def test_a_snapshot(on_gpu: Work, workers: Workers, seen: list[list[str]], tmp_path: Path) -> None:
    checkpoint(on_gpu)
    assert seen == [AWAY]
    assert workers.states == RUNNING
    config = made(tmp_path).config
    gpu = numbered(H100, 1)
    assert config.gpu.pids == workers.pids
    assert config.gpu.uuids == [gpu.uuid]
    assert config.gpu.memory == {gpu.uuid: 0}
    assert config.host.gpus == [Gpu(gpu.model, gpu.memory, gpu.driver, 1)]
    spans = [span.name for span in config.spans]
    assert spans.index("lock") < spans.index("device") < spans.index("dump")
    assert spans.index("dump") < spans.index("device back") < spans.index("write")


def test_it_is_quiet_before_and_resumed_after(
    tmp_path: Path, cuda: FakeCuda, nvml: FakeNvml, workers: Workers, seen: list[list[str]]
) -> None:
    """What is done to the worker before and after needs its GPU."""
    asked: list[tuple[bytes, list[str]]] = []

    def talk(connection: socket.socket, request: bytes) -> None:
        asked.append((request.split()[1], workers.states))
        answer(200)(connection, request)

    with talker(talk) as server:
        notes = {f"thaw.dev/{verb}": f"http:{server.port}/{verb}" for verb in ("quiesce", "resume")}
        work = work_of(tmp_path, {**ON_GPU, "annotations": notes})
        (tmp_path / "upper" / "written").touch()
        checkpoint(with_config(work, {"gpu.library": cuda.library, "checkpoint.engine": "criu"}))
    assert seen == [AWAY]
    assert asked == [(b"/quiesce", RUNNING), (b"/resume", RUNNING)]


def test_the_memory_that_it_will_need(
    on_gpu: Work, workers: Workers, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free once it has left, and was not before. Others may have come meanwhile."""
    asked: list[int] = []
    real = device._given

    def given(work: Work) -> Any:
        found = real(work)
        asked.append(len(asked))
        nvml.has(machine(A100, *grown(H100.free + 12 * GIB)))
        return found

    monkeypatch.setattr(device, "_given", given)
    with suspended(on_gpu, Timeline()) as held:
        assert held.state.memory == {numbered(H100, 1).uuid: 12 * GIB}
    nvml.has(machine(A100, *grown(H100.free + 20 * GIB)))
    with suspended(on_gpu, Timeline()) as held:
        assert held.state.memory == {numbered(H100, 1).uuid: 0}


def grown(free: int) -> list[Any]:
    return [replace(H100, free=free)]


@pytest.mark.parametrize("exit", [False, True])
def test_a_dump_that_fails(
    on_gpu: Work, criu: Criu, workers: Workers, seen: list[list[str]], tmp_path: Path, exit: bool
) -> None:
    criu.fails_after = "criu failed: type NOTIFY"
    with pytest.raises(CheckpointFailed, match="cannot dump c: criu failed"):
        checkpoint(with_config(on_gpu, {}, exit=exit))
    assert seen == [AWAY]
    assert workers.states == RUNNING
    assert left(tmp_path) == []


def test_a_dump_that_is_done_in_another_way(
    on_gpu: Work, workers: Workers, seen: list[list[str]]
) -> None:
    """Its GPU state stays away until the last way has been tried."""
    checkpoint(with_config(on_gpu, {"checkpoint.engine": "native"}))
    assert seen == [AWAY, AWAY]
    assert workers.states == RUNNING


def test_the_driver_refuses(
    on_gpu: Work, cuda: FakeCuda, workers: Workers, seen: list[list[str]], tmp_path: Path
) -> None:
    cuda.answer("Checkpoint", OUT_OF_MEMORY, pid=workers.pids[0])
    with pytest.raises(GpuFailed, match=f"process {workers.pids[0]}"):
        checkpoint(on_gpu)
    assert seen == []
    assert workers.states == RUNNING
    assert left(tmp_path) == []


@pytest.fixture
def alone(on_gpu: Work, workers: Workers) -> Work:
    """The container of one of the workers, which is its init: it can be ended."""
    return with_config(on_gpu, {"audit.log": f"{on_gpu.folder}/audit"}, pid=workers.pids[0])


def test_it_cannot_have_its_gpus_back(
    alone: Work, cuda: FakeCuda, workers: Workers, seen: list[list[str]], tmp_path: Path
) -> None:
    """What could not be restored here can be restored nowhere: there is no such snapshot, and no
    such worker, which would wait for ever."""
    lost, other = workers.pids
    cuda.answer("Restore", 801, pid=lost)
    with pytest.raises(GpuLost, match=r"cannot be given back.*container was ended") as failed:
        checkpoint(alone)
    assert "imported VMM memory" in failed.value.hint
    assert seen == [["checkpointed", "running"]]
    assert left(tmp_path) == []
    assert workers.ended(lost) == -signal.SIGKILL
    assert workers.ended(other) is None
    lines = [json.loads(line) for line in (alone.folder / "audit").read_text().splitlines()]
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("end", "GpuLost"),
        ("create", "GpuLost"),
    ]
    assert lines[0]["outcome"] == "the container was ended"


def test_it_waits_for_the_room_that_it_had(
    on_gpu: Work,
    cuda: FakeCuda,
    workers: Workers,
    nvml: FakeNvml,
    criu: Criu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever took it meanwhile may give it back; a restore without room is the worker's end."""
    free = [40, 60, 10, 10, 60]  # before, without it, and while it is waited for
    asked: list[int] = []
    real = gpus

    def looked() -> list[Any]:
        asked.append(len(cuda.asked()))
        nvml.has(machine(A100, *grown(free[len(asked) - 1] * GIB)))
        return real()

    monkeypatch.setattr("shim.gpu.nvml.gpus", looked)
    checkpoint(on_gpu)
    assert asked == [0, 4, 4, 4, 4], "two locked and checkpointed, none restored"
    assert made(tmp_path).config.gpu.memory == {numbered(H100, 1).uuid: 20 * GIB}
    assert workers.states == RUNNING


def test_one_that_is_paused(
    on_gpu: Work, cuda: FakeCuda, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver would wait for it."""
    group = Cgroup(2, {"": str(on_gpu.folder)})
    (on_gpu.folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    monkeypatch.setattr(device, "of_pid", lambda _: group)
    with pytest.raises(FailedPrecondition, match="is paused"):
        checkpoint(on_gpu)
    assert cuda.asked() == []


def test_a_driver_that_answers_nothing(
    on_gpu: Work, cuda: FakeCuda, workers: Workers, tmp_path: Path
) -> None:
    """A GPU that has failed: nothing was touched yet, and nobody waits for ever."""
    with cuda.held("cuInit"):
        with pytest.raises(GpuFailed, match=r"has not answered within 0\.2 s"):
            checkpoint(with_config(on_gpu, {"gpu.limit": 0.2}))
        assert workers.states == RUNNING
        assert left(tmp_path) == []
        eventually(lambda: cuda.under_way("cuInit"))  # or it would not be seen to end
    eventually(lambda: not cuda.under_way("cuInit"))  # it would go on in the next test's world


@pytest.mark.parametrize("exit", [False, True])
def test_a_worker_is_killed_before_it_is_dumped(
    on_gpu: Work,
    criu: Criu,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    exit: bool,
) -> None:
    killed, other = workers.pids

    def dump(_runc: Runc, options: Sequence[str]) -> None:
        workers.kill(killed)
        criu.dump(options)

    monkeypatch.setattr(Runc, "checkpoint", dump)
    with pytest.raises(CheckpointFailed, match=f"process {killed} ended"):
        checkpoint(with_config(on_gpu, {}, exit=exit))
    assert workers.cuda.state(other) == "running"
    assert left(tmp_path) == []


def test_one_that_shall_end(
    on_gpu: Work, criu: Criu, workers: Workers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pids = workers.pids

    def dump(_runc: Runc, options: Sequence[str]) -> None:
        criu.dump(options)
        for pid in pids:
            workers.kill(pid)

    monkeypatch.setattr(Runc, "checkpoint", dump)
    checkpoint(with_config(on_gpu, {}, exit=True))
    assert made(tmp_path).config.gpu.pids == pids
    assert "Restore" not in {call.short for call in workers.cuda.calls}


NOWHERE = {"gpu.library": "/nowhere/libcuda.so.1"}


def test_no_driver_that_could_do_it(
    on_gpu: Work,
    cuda: FakeCuda,
    workers: Workers,
    seen: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "holds_gpu", lambda pid: pid == workers.pids[1])
    with pytest.raises(Unfit, match="no CUDA driver"):
        checkpoint(with_config(on_gpu, NOWHERE))
    cuda.answer("cuInit", 100)
    with pytest.raises(GpuFailed, match="NO_DEVICE"):
        checkpoint(on_gpu)
    assert seen == []
    assert left(tmp_path) == []


def test_a_library_on_a_machine_without_gpus(
    on_gpu: Work, workers: Workers, tmp_path: Path, criu: Criu
) -> None:
    """An image may have its own, and a worker may have loaded it in vain."""
    recover(with_config(on_gpu, NOWHERE))
    checkpoint(with_config(on_gpu, NOWHERE))
    assert made(tmp_path).config.gpu == CudaState()
    assert workers.cuda.calls == []


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
def test_who_holds_something_of_a_gpu(tmp_path: Path) -> None:
    """A node can have any name; a path to one that cannot be opened is as good for this."""
    os.mknod(tmp_path / "any", stat.S_IFCHR | 0o600, os.makedev(195, 255))
    assert not device.holds_gpu(os.getpid())
    held = os.open(tmp_path / "any", os.O_PATH)
    assert device.holds_gpu(os.getpid())
    os.close(held)


def test_gpus_that_cannot_be_checkpointed(
    on_gpu: Work, nvml: FakeNvml, workers: Workers, seen: list[list[str]]
) -> None:
    nvml.has(machine(A100, replace(H100, mig=True)))
    with pytest.raises(Unfit, match="MIG"):
        checkpoint(on_gpu)
    assert seen == []
    assert workers.cuda.asked() == []


def test_the_library_alone_is_no_reason(
    on_gpu: Work, cuda: FakeCuda, workers: Workers, seen: list[list[str]], tmp_path: Path
) -> None:
    """Many have it mapped that have never called it."""
    pids = workers.pids
    for pid in pids:
        cuda.remove(pid)
    assert set(pids) <= candidates(os.getpid()).keys()
    with suspended(on_gpu, Timeline()) as held:
        assert held.state == CudaState()
    for pid in pids:
        cuda.add(pid)


def test_an_engine_that_died(on_gpu: Work, cuda: FakeCuda, workers: Workers) -> None:
    """The next one that is asked to resume the worker gives it back what it finds missing."""
    one, other = workers.pids
    cuda.add(one, "checkpointed")
    cuda.add(other, "locked")
    assert resume(on_gpu) == {}
    assert workers.states == RUNNING
    recover(on_gpu)


def test_an_engine_that_died_and_a_worker_that_is_lost(
    alone: Work, cuda: FakeCuda, workers: Workers
) -> None:
    lost, other = workers.pids
    cuda.answer("Unlock", 801)
    cuda.add(lost, "locked")
    with pytest.raises(GpuLost, match=f"process {lost}.*container was ended"):
        resume(alone)
    assert (workers.ended(lost), workers.ended(other)) == (-signal.SIGKILL, None)
