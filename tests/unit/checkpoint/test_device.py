"""A worker on GPUs is dumped: with nothing of it there meanwhile, and all of it afterwards."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import VARIABLE, FakeCuda
from fakes.cuda_worker import Workers
from fakes.dumping import SPEC, Criu, left, made, work_of
from fakes.nvml import A100, GIB, H100, FakeNvml, machine, numbered
from fakes.talkers import answer, talker

from shim.checkpoint import device
from shim.checkpoint.device import Device, candidates, recover, suspended
from shim.checkpoint.engine import checkpoint
from shim.checkpoint.quiet import resume
from shim.errors import CheckpointFailed, GpuFailed, Unfit
from shim.runc import Runc
from shim.snapshot.config import CudaState, Gpu
from shim.timeline import Timeline
from shim.work import Work

OUT_OF_MEMORY = 2
NODE = {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 1}
ON_GPU = {"linux": {**SPEC["linux"], "devices": [NODE]}}


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cuda"))
    return FakeCuda(tmp_path / "cuda")


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


def test_it_cannot_have_its_gpus_back(
    on_gpu: Work, cuda: FakeCuda, workers: Workers, seen: list[list[str]], tmp_path: Path
) -> None:
    """What could not be restored here can be restored nowhere: there is no such snapshot."""
    cuda.answer("Restore", 801, pid=workers.pids[0])
    with pytest.raises(GpuFailed, match="not given back"):
        checkpoint(on_gpu)
    assert seen == [AWAY]
    assert left(tmp_path) == []


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
    cuda.answer("Unlock", 801)
    cuda.add(one, "locked")
    with pytest.raises(GpuFailed, match=f"process {one}"):
        resume(on_gpu)


# Without CUDA

PROGRAM = """
import sys
from shim.checkpoint.device import recover, suspended
from shim.timeline import Timeline
import shim.checkpoint.engine, shim.engine, shim.restore.engine
from shim.restore.device import Device
from shim.snapshot.config import CudaState
class Work:
    details = {"pid": int(sys.argv[1])}
    config = None
class Snapshot:
    gpu = CudaState()
with suspended(Work, Timeline()) as held:
    assert held.state == CudaState()
    held.check()
    held.resume()
recover(Work)
device = Device()
device.expect(None, Snapshot)
assert device.judge(Work, {}, Snapshot) == []
assert device.report() == {}
print(*sorted(name for name in sys.modules if name.startswith(("shim.gpu", "pynvml"))))
"""


def test_it_costs_nothing() -> None:
    """Neither side so much as imports what it would be done with."""
    with subprocess.Popen(["sleep", "1000"]) as worker:
        command = [sys.executable, "-c", PROGRAM, str(worker.pid)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        worker.kill()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.strip() == ""


def test_a_worker_that_has_ended() -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    assert candidates(gone.pid) == {}


def test_nothing_to_be_done() -> None:
    held = Device()
    held.check()
    held.resume()
    assert (held.state, held.gpus) == (CudaState(), ())
