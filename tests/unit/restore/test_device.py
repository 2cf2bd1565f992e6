"""The GPU part of a restore: judged before anything is touched, begun early, done before all else
that a worker could notice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.cuda_worker import Workers
from fakes.nvml import A100, GIB, H100, FakeNvml, machine, numbered
from fakes.settled import eventually
from fakes.snapshots import CONFIG, HOST, make
from fakes.work import make_work

from shim.config import Config
from shim.engine import Begun
from shim.errors import GpuFailed, RestoreFailed, Unfit
from shim.restore import device as devices
from shim.restore import engine, stages
from shim.restore import plan as planning
from shim.restore.adoption import Adoption
from shim.restore.bulk import Memory
from shim.restore.device import Device, restored
from shim.restore.engine import restore
from shim.restore.plan import Plan
from shim.restore.steps import Step, steps_of
from shim.snapshot.config import Gpu, SnapshotConfig
from shim.snapshot.cuda import CudaProcess, CudaState
from shim.snapshot.store import Store
from shim.work import Work

OUT_OF_MEMORY = 2
OLD = numbered(H100, 9).uuid  # of a GPU that is not here
KIND = Gpu(H100.model, H100.memory, H100.driver, 1)


def snapshot_of(pids: list[int], uuid: str = OLD, memory: int = GIB) -> SnapshotConfig:
    """Made on one H100, of these processes."""
    state = CudaState([CudaProcess(pid) for pid in pids], [uuid], {uuid: memory})
    return replace(CONFIG, host=replace(HOST, gpus=[KIND]), gpu=state)


def node(minor: int) -> dict[str, Any]:
    device = {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": minor}
    return {"linux": {"devices": [device]}}


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    (tmp_path / "nvml.lib").mkdir()
    fake = FakeNvml(tmp_path / "nvml.lib")
    fake.use(monkeypatch)
    fake.has(machine(A100, H100))
    return fake


@pytest.fixture
def work(tmp_path: Path, cuda: FakeCuda, nvml: FakeNvml) -> Work:
    """A container that is given the second GPU; this process stands for its init."""
    plain = make_work(tmp_path, node(1))
    settings = {"gpu.library": cuda.library, "gpu.wait": 0.2}
    Path(plain.bundle.pid_file).write_text(str(os.getpid()))
    return Work.parse({**plain.raw, "config": {**plain.raw["config"], **settings}})


@pytest.fixture
def workers(cuda: FakeCuda) -> Iterator[Workers]:
    """Two, below this process, as CRIU has restored them."""
    with Workers(cuda, 2) as made:
        for pid in made.pids:
            cuda.add(pid, "checkpointed")
        yield made


def plan_of(work: Work, snapshot: SnapshotConfig, device: Device) -> Plan:
    moved = device.judge(work, work.bundle.spec(), snapshot)
    made = planning.bare(work, Path("/nowhere"))
    return replace(made, cuda=tuple(snapshot.gpu.pids), gpus=tuple(moved))


def test_onto_another_gpu(work: Work, cuda: FakeCuda, workers: Workers) -> None:
    device = Device()
    plan = plan_of(work, snapshot_of(workers.pids), device)
    here = numbered(H100, 1)
    assert plan.gpus == ((OLD, here.uuid),)
    lines = plan.describe()
    assert "give 2 processes the GPU state back, then unlock" in lines
    assert f"  {OLD} becomes {here.uuid}" in lines
    device.resume(work, plan)
    assert workers.states == ["running"] * 2
    old, new = (bytes.fromhex(uuid[4:].replace("-", "")).hex() for uuid in plan.gpus[0])
    assert {c.detail for c in cuda.calls if c.short == "Restore"} == {f"{old}>{new}"}
    words = device.report()["cuda"].split()
    assert [word.split("=")[0] for word in words] == ["init", "restore", "unlock"]


def test_onto_the_same_gpu(work: Work, cuda: FakeCuda, workers: Workers) -> None:
    """The driver is told of none then: older ones know no pairs."""
    device = Device()
    plan = plan_of(work, snapshot_of(workers.pids, numbered(H100, 1).uuid), device)
    assert plan.gpus == ()
    assert not [line for line in plan.describe() if "becomes" in line]
    device.resume(work, plan)
    assert {c.detail for c in cuda.calls if c.short == "Restore"} == {""}


def test_gpus_that_the_spec_does_not_name(work: Work, workers: Workers) -> None:
    """A hook may have given them: then they are taken to be the same."""
    bare = replace(snapshot_of(workers.pids), gpu=CudaState([CudaProcess(p) for p in workers.pids]))
    device = Device()
    plan = plan_of(work, replace(bare, host=HOST), device)
    assert plan.gpus == ()
    device.resume(work, plan)
    assert workers.states == ["running"] * 2


def test_it_is_begun_early(cuda: FakeCuda, nvml: FakeNvml, tmp_path: Path) -> None:
    """As soon as it is known which snapshot the pod names: there is no container yet."""
    store = Store(tmp_path / "snapshots")
    make(store, "one", snapshot_of([1]))
    make(store, "other", CONFIG)
    settings = {"snapshots": str(store.folder), "gpu.library": cuda.library}
    request = {"config": Config(settings).as_dict(), "namespace": CONFIG.origin.namespace}
    begun = Begun()
    begun.ahead.begin({**request, "name": "other"}, begun.device.expect)
    assert begun.device.report() == {}
    begun.ahead.begin({**request, "name": "one", "namespace": "others"}, begun.device.expect)
    assert begun.device.report() == {}, "it may not have that one"
    begun.ahead.begin({**request, "name": "one"}, begun.device.expect)
    eventually(lambda: "cuInit" in {call.name for call in cuda.calls})
    begun.device.expect(Config(settings), snapshot_of([1]))
    assert begun.device.report() == {"cuda": ""}


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        (snapshot_of([1], "GPU-x"), "no UUID of a GPU"),
        (snapshot_of([1], memory=90 * GIB), "has 80.0 GiB of memory, 90.0 GiB are needed"),
        (replace(snapshot_of([1]), host=replace(HOST, gpus=[replace(KIND, model="B200")])), "B200"),
        (
            replace(snapshot_of([1]), host=replace(HOST, gpus=[replace(KIND, driver="590.1")])),
            "older branch",
        ),
    ],
)
def test_gpus_that_will_not_do(work: Work, snapshot: SnapshotConfig, words: str) -> None:
    with pytest.raises(Unfit, match=words):
        Device().judge(work, work.bundle.spec(), snapshot)


def test_no_gpu_in_the_pod(work: Work) -> None:
    with pytest.raises(Unfit, match="the container has none"):
        Device().judge(work, {}, snapshot_of([1]))


def test_no_driver(work: Work, tmp_path: Path) -> None:
    config = {**work.raw["config"], "gpu.library": str(tmp_path / "libcuda.so.1")}
    with pytest.raises(Unfit, match="no CUDA driver"):
        Device().judge(
            Work.parse({**work.raw, "config": config}), work.bundle.spec(), snapshot_of([1])
        )


def test_memory_that_is_not_free(
    work: Work, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, as long as the operator says."""
    nvml.has(machine(A100, replace(H100, free=GIB)))
    with pytest.raises(Unfit, match=r"has 1\.0 GiB free, 2\.0 GiB are needed.*after 0\.2 s"):
        Device().judge(work, work.bundle.spec(), snapshot_of([1], memory=2 * GIB))
    config = {**work.raw["config"], "gpu.wait": 60.0}
    patient = Work.parse({**work.raw, "config": config})
    monkeypatch.setattr(time, "sleep", lambda _: nvml.has(machine(A100, H100)))
    Device().judge(patient, work.bundle.spec(), snapshot_of([1], memory=2 * GIB))


def test_processes_that_are_not_there(work: Work, workers: Workers) -> None:
    device = Device()
    plan = plan_of(work, snapshot_of([*workers.pids, 4_000_000]), device)
    with pytest.raises(RestoreFailed, match="process 4000000 of the container"):
        device.resume(work, plan)
    assert workers.states == ["checkpointed"] * 2
    assert restored(os.getpid(), tuple(workers.pids)) == workers.pids


def test_without_cuda(work: Work) -> None:
    device = Device()
    plan = plan_of(work, CONFIG, device)
    assert (plan.cuda, plan.gpus) == ((), ())
    assert not [line for line in plan.describe() if "GPU" in line]
    device.resume(work, plan)
    assert device.report() == {}


# In the flow


def test_nobody_is_told_before() -> None:
    order = [step.name for step in steps_of(Memory(None), Adoption(), Device())]
    assert order.index("criu") + 1 == order.index("device")
    for later in ("hostname", "adopt", "introduce", "complete", "resume", "canary", "release"):
        assert order.index("device") < order.index(later)


@pytest.fixture
def whole(
    work: Work, workers: Workers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[Work, list[str]]:
    """A restore of which the steps around the device's only say that they are done or undone."""
    said: list[str] = []
    real = steps_of

    def quiet(
        memory: Memory, adoption: Adoption, device: Device, _timeline: object
    ) -> tuple[Step, ...]:
        def noted(step: Step) -> Step:
            do = step.do if step.name == "device" else lambda *_: None

            def act(work: Work, plan: Plan) -> None:
                said.append(step.name)
                do(work, plan)

            def undo(_work: Work, _plan: Plan) -> None:
                said.append(f"undo {step.name}")

            return Step(step.name, act, undo)

        return tuple(noted(step) for step in real(memory, adoption, device))

    monkeypatch.setattr(engine, "steps_of", quiet)
    monkeypatch.setattr(stages, "check_mounts", lambda *_: None)
    monkeypatch.setattr(stages, "exchange", lambda *_: None)  # init is of this machine
    snapshot = snapshot_of(workers.pids)

    def prepared(
        asked: Work, _ahead: object, device: Device | None, _timeline: object
    ) -> tuple[Plan, Memory]:
        assert device is not None
        return plan_of(asked, snapshot, device), Memory(None, "on purpose")

    monkeypatch.setattr(engine, "prepare", prepared)
    monkeypatch.setattr(engine, "_record", lambda *_: None)
    monkeypatch.setattr(devices, "read_pid", lambda _: os.getpid())
    (tmp_path / "images").mkdir()
    details = {"name": "", "snapshot": str(tmp_path / "images")}
    return Work.parse({**work.raw, **details}), said


def test_a_whole_restore(whole: tuple[Work, list[str]], workers: Workers) -> None:
    work, said = whole
    reply = restore(work)
    assert workers.states == ["running"] * 2
    assert "restore=" in reply["memory"]["cuda"]
    assert not [name for name in said if name.startswith("undo")]


def test_one_process_cannot_be_restored(
    whole: tuple[Work, list[str]], workers: Workers, cuda: FakeCuda
) -> None:
    """The worker hears nothing, and all of it is ended."""
    work, said = whole
    cuda.answer("Restore", OUT_OF_MEMORY, pid=workers.pids[1])
    with pytest.raises(GpuFailed, match=f"process {workers.pids[1]}"):
        restore(work)
    assert said[said.index("device") + 1 :][:2] == ["undo device", "undo criu"]
    assert "introduce" not in said
    assert not [call for call in cuda.calls if call.short == "Unlock"]
    assert not work.marker.exists()
