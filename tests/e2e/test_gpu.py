"""Workers on GPUs through containerd, without a GPU: the driver and NVML are the tests' own.

The fake driver's calls are made by the real engine for real processes, which hold their CUDA state
in their own memory, so that CRIU dumps and restores it; whoever is locked waits, as on a GPU.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from bed.lane import Installation
from bed.pod import Container, Pod
from fakes.cuda import Call
from fakes.nvml import A100, GIB, H100, machine, numbered
from gate import gate
from gpus import GpuLane, booted, changes, moved, removed, running
from stored import edit_config, ids, path_of
from workers import (
    FAIL,
    SNAPSHOT,
    Told,
    awaited_lines,
    children,
    init_pid,
    outcome,
    shim_pid,
    wait_until,
)

from shim.gpu.nvml import Gpu, uuid_bytes

NAME = "on-gpu"
NOT_READY, NOT_SUPPORTED, OUT_OF_MEMORY = 600, 801, 2


@pytest.fixture(scope="module")
def shared(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GpuLane]:
    """The lane of all these tests, with one GPU."""
    if installation is None:
        pytest.skip("needs the product to be installed")
    lane = GpuLane(installation, tmp_path_factory.mktemp("gpu"))
    lane.nvml.has(machine(H100))
    with running(lane):
        yield lane


@pytest.fixture
def lane(shared: GpuLane) -> GpuLane:
    """It, with a driver that does what it is asked for."""
    shared.cuda.reset()
    shared.nvml.has(machine(H100))
    return shared


@pytest.fixture(scope="module")
def home(shared: GpuLane) -> Iterator[Pod]:
    """The pod in which workers boot cold."""
    with shared.pod("cold") as pod:
        yield pod


@pytest.fixture(scope="module")
def worker(shared: GpuLane, home: Pod) -> Container:
    """One that outlives what it is made a snapshot of."""
    return booted(shared.worker(home).start())


class Made(NamedTuple):
    """The one good snapshot, and what was seen of its making."""

    told: Told  # by the worker, before
    states: list[str]  # when it was dumped
    calls: list[Call]
    changes: list[tuple[str, set[int]]]


@pytest.fixture(scope="module")
def snapshot(shared: GpuLane, worker: Container) -> Made:
    shared.cuda.reset()
    shared.nvml.has(machine(H100))
    told = shared.ask(worker)
    with shared.cuda.held("Restore"):
        making = shared.checkpointing(worker, NAME)
        wait_until(lambda: making.done() or shared.cuda.under_way("Restore"), "the dump's end")
        states = shared.states(worker)
    done = making.result()
    assert done.returncode == 0, done
    return Made(told, states, shared.cuda.calls, changes(shared))


@pytest.fixture(scope="module")
def fallible(shared: GpuLane, snapshot: Made) -> Iterator[Pod]:
    """A pod whose worker boots cold if it cannot be restored."""
    with shared.pod("fallible", annotations={SNAPSHOT: NAME}) as pod:
        yield pod


def strict(lane: GpuLane, *gpus: Gpu) -> AbstractContextManager[Pod]:
    """A pod whose worker is restored or nothing, on a node of these GPUs.

    They are looked at once the pod has its sandbox, for its first container.
    """
    lane.nvml.has(gpus)
    return lane.pod("strict", annotations={SNAPSHOT: NAME, **FAIL})


def refused(lane: GpuLane, container: Container, name: str) -> str:
    """What `thaw checkpoint` says that must not make a snapshot."""
    before = ids(lane)
    done = lane.checkpointing(container, name).result()
    assert done.returncode == 1, done
    assert ids(lane) == before
    return str(done.stderr)


def ended(said: str, pid: int) -> bool:
    """Whether an error names the process; others may have followed it."""
    return re.search(rf"process ([0-9]+, )*{pid}(, [0-9]+)* ended before", said) is not None


def kill(lane: GpuLane, call: str, pid: int) -> None:
    """Kill a process while the driver is at `call` for it, and wait until that is over."""
    wait_until(lambda: lane.cuda.under_way(call, pid), f"a {call} of {pid}")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not lane.cuda.under_way(call, pid), f"the end of {call}")


# -- checkpoint and restore ------------------------------------------------------------------------


def test_a_checkpoint(lane: GpuLane, worker: Container, snapshot: Made) -> None:
    """All of it, in order, for who uses CUDA and nobody else; and the worker goes on."""
    pids = set(lane.cuda_pids(worker))
    order = ["Lock", "Checkpoint", "Restore", "Unlock"]
    assert snapshot.changes == [(call, pids) for call in order]
    [other] = children(init_pid(lane, worker.id), "resource_tracker")
    assert other not in {call.pid for call in snapshot.calls}
    assert snapshot.states == ["checkpointed"] * 2, "once it was dumped"
    assert lane.states(worker) == ["running"] * 2
    assert lane.ask(worker) == Told(snapshot.told.token, snapshot.told.asked + 1)
    document = json.loads((path_of(lane, NAME) / "config.json").read_text())
    assert document["gpu"]["uuids"] == [numbered(H100, 0).uuid]
    assert len(document["gpu"]["processes"]) == 2
    assert 1 in [process["pid"] for process in document["gpu"]["processes"]]


def test_a_restore(lane: GpuLane, worker: Container, snapshot: Made) -> None:
    """All are restored before one goes on, in a pod of other pids and with another GPU."""
    old, new = numbered(H100, 0), replace(H100, uuid=numbered(H100, 7).uuid)
    with strict(lane, new) as pod:
        container = lane.worker(pod).start()
        assert outcome(lane, container).message == "restored"
        pids = lane.cuda_pids(container)
        assert not set(pids) & set(lane.cuda_pids(worker))
        assert changes(lane) == [("Restore", set(pids)), ("Unlock", set(pids))]
        pair = ">".join(uuid_bytes(gpu.uuid).hex() for gpu in (old, new))
        assert {call.detail for call in lane.cuda.calls if call.short == "Restore"} == {pair}
        assert lane.ask(container) == Told(snapshot.told.token, snapshot.told.asked + 1)


# -- what the driver refuses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "answer", "words"),
    [("Lock", NOT_READY, "NOT_READY"), ("Checkpoint", NOT_SUPPORTED, "cudaMallocManaged")],
)
def test_one_process_cannot_be_checkpointed(
    lane: GpuLane, worker: Container, call: str, answer: int, words: str
) -> None:
    """Everything is given back, and the worker goes on."""
    _, engine = lane.cuda_pids(worker)
    lane.cuda.answer(call, answer, pid=engine)
    said = refused(lane, worker, "none")
    assert f"{call} of process {engine}" in said
    assert words in said
    assert lane.states(worker) == ["running"] * 2
    before = lane.ask(worker)
    assert lane.ask(worker).asked == before.asked + 1


def test_a_worker_that_cannot_go_on(lane: GpuLane, home: Pod) -> None:
    """Memory of another process was mapped: known only when it is to be given back. The worker
    would wait for ever, so its container ends, for whoever watches over it to start it anew."""
    with removed(lane.worker(home)) as container:
        _, engine = lane.cuda_pids(booted(container.start()))
        lane.cuda.answer("Restore", NOT_SUPPORTED, pid=engine)
        said = refused(lane, container, "lost")
        assert f"process {engine}: CUDA_ERROR_NOT_SUPPORTED" in said
        assert "imported VMM memory" in said
        assert "the container was ended" in said
        assert container.wait() == 128 + signal.SIGKILL
        told(lane, container, "a worker is lost over its snapshot")
    lines = [json.loads(line) for line in lane.places.audit.read_text().splitlines()]
    [line] = [line for line in lines if line["event"] == "end"]
    assert (line["container"], line["reason"]) == (container.id, "GpuLost")


def test_no_second_one_is_lost(lane: GpuLane) -> None:
    """Pods that ask for one snapshot: what befell the first worker is known in the next pod."""
    lane.cuda.answer("Restore", NOT_SUPPORTED)
    with lane.pod("first", annotations=NEVER) as pod:
        container = warm(lane, pod)
        told(lane, container, "a worker is lost over its snapshot")
        assert container.wait() == 128 + signal.SIGKILL
    for name in ("second", "third"):
        with lane.pod(name, annotations=NEVER) as pod:
            container = warm(lane, pod)
            why = told(lane, container, "could not make a snapshot")
            assert "no snapshot never is made: a worker like this was lost over it" in why
            assert "imported VMM memory" in why
            assert "thaw rm never" in why
            assert lane.states(container) == ["running"] * 2
    lane.thaw("rm", "never")
    lane.cuda.reset()
    with lane.pod("fourth", annotations=NEVER) as pod:
        told(lane, warm(lane, pod), "snapshot made")
    lane.thaw("rm", "never")


NEVER = {"thaw.dev/checkpoint": "never", "thaw.dev/ready": "exec:test -e /tmp/warm"}


def warm(lane: GpuLane, pod: Pod) -> Container:
    """A worker that says so."""
    container = booted(lane.worker(pod).start())
    assert container.exec(["touch", "/tmp/warm"]).exit_code == 0
    return container


def told(lane: GpuLane, container: Container, message: str) -> str:
    """The error, if any, in what the shim says sooner or later."""
    return awaited_lines(lane, container.id, message)[0].fields.get("error", "")


# -- killed in the midst of it ---------------------------------------------------------------------


@pytest.mark.parametrize("call", ["Lock", "Checkpoint"])
def test_killed_over_a_call(lane: GpuLane, home: Pod, call: str) -> None:
    with removed(lane.worker(home)) as container:
        _, engine = lane.cuda_pids(booted(container.start()))
        with lane.cuda.held(call):
            making = lane.checkpointing(container, "none")
            kill(lane, call, engine)
        done = making.result()
        assert done.returncode == 1, done
        assert ended(done.stderr, engine), done
        assert container.wait() == 9, "the server has gone on, and seen it"
    assert not list(lane.places.snapshots.glob("snapshots/.*"))


def test_killed_over_the_dump(lane: GpuLane, home: Pod) -> None:
    """First Thaw's engine, whose work somebody else takes back; then the worker's."""
    with gate(lane, "pre-dump", lane.more) as held, removed(lane.worker(home)) as container:
        booted(container.start())
        making = lane.checkpointing(container, "none")
        held.wait()
        assert lane.states(container) == ["checkpointed"] * 2
        [own] = children(shim_pid(lane, container.id), "shim/engine.py")
        os.kill(own, signal.SIGKILL)
        held.open()
        assert making.result().returncode == 1
        assert lane.states(container) == ["running"] * 2
        assert lane.ask(container).asked == 1
        lane.thaw("gc")  # its draft
        making = lane.checkpointing(container, "none")
        held.wait()
        os.kill(lane.cuda_pids(container)[1], signal.SIGKILL)
        held.open()
        done = making.result()
        assert done.returncode == 1, done
        assert container.wait() == 9
    assert not list(lane.places.snapshots.glob("snapshots/.*"))


@pytest.mark.parametrize("call", ["Restore", "Unlock"])
def test_killed_over_a_restore(lane: GpuLane, fallible: Pod, call: str) -> None:
    """What is left of it is ended, and the container boots cold."""
    with removed(lane.worker(fallible)) as container:
        with lane.cuda.held(call):
            starting = container.starting()
            wait_until(lambda: lane.cuda.under_way(call), f"a {call}")
            pid = max(made.pid for made in lane.cuda.calls if made.short == call)
            kill(lane, call, pid)
        starting.result()
        line = outcome(lane, container)
        assert (line.message, line.fields["reason"]) == ("booting cold", "GpuFailed")
        assert ended(line.fields["error"], pid), line
        booted(container)
        assert lane.states(container) == ["running"] * 2


# -- what cannot be restored here ------------------------------------------------------------------


def test_no_room_after_all(lane: GpuLane, fallible: Pod) -> None:
    """Somebody was quicker: it is not tried again."""
    lane.cuda.answer("Restore", OUT_OF_MEMORY)
    with removed(lane.worker(fallible)) as container:
        booted(container.start())
        line = outcome(lane, container)
        assert (line.message, line.fields["reason"]) == ("booting cold", "GpuFailed")
        assert "OUT_OF_MEMORY" in line.fields["error"]
    assert [call.split()[0] for call in lane.cuda.asked()] == ["Restore"] * 2


def test_a_gpu_that_will_not_do(lane: GpuLane, snapshot: Made) -> None:
    """It is known before anything is touched, and said by name."""
    uuid = numbered(H100, 0).uuid
    edit_config(path_of(lane, NAME), lambda c: c["gpu"]["memory"].update({uuid: 20 * GIB}))
    with strict(lane, *machine(A100)) as pod:
        assert "made with GPUs: 1 NVIDIA H100 80GB HBM3" in unfit(lane, pod)
    with strict(lane, *machine(replace(H100, free=GIB, processes=(77,)))) as pod:
        said = unfit(lane, pod)
    assert "has 1.0 GiB free, 20.0 GiB are needed" in said
    assert "its processes: 77 (after 0.3 s)" in said
    with moved(Path(lane.cuda.library)), strict(lane, *machine(H100)) as pod:
        assert "no CUDA driver" in unfit(lane, pod)
    assert lane.cuda.asked() == []


def unfit(lane: GpuLane, pod: Pod) -> str:
    """Why a container in the pod is not restored."""
    with removed(lane.worker(pod)) as container:
        with pytest.raises(grpc.RpcError):
            container.start()
        line = outcome(lane, container)
    assert (line.message, line.fields["reason"]) == ("not restored", "Unfit")
    return line.fields["error"]
