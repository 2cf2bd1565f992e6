"""What happens in the middle of a restore: Kill, Delete, deadlines, and deaths of those at work.

CRIU waits at its `post-restore` stage in these tests: the worker's processes are there, with their
memory, in the new pod's namespaces and cgroup, and have not run yet.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc
import pytest
from bed.cri import api_pb2 as api
from bed.images import BUSYBOX_IMAGE
from bed.lane import CRI_NAMESPACE, Lane
from bed.pod import Container, Pod
from gate import Gate, gate
from workers import (
    COMMAND,
    SNAPSHOT,
    TASKS,
    alive,
    ask,
    boot,
    bundle,
    children,
    init_pid,
    kept_snapshot,
    outcome,
    removed,
    shim_client,
    shim_pid,
    wait_until,
)

from shim.proto import task_pb as pb
from shim.proto.known_pb import Empty
from shim.proto.wire import Message

STAGE = "post-restore"
M = TypeVar("M", bound=Message)


@pytest.fixture(scope="module")
def worker(lane: Lane) -> Iterator[str]:
    with kept_snapshot(lane, "worker", boot) as name:
        yield name


@pytest.fixture(scope="module")
def pod(lane: Lane) -> Iterator[Pod]:
    with lane.pod("cancel") as pod:
        yield pod


attempts = iter(range(1000))


def wanting(pod: Pod, name: str) -> Container:
    """A container that shall be restored; each has a log of its own."""
    notes = {SNAPSHOT: name}
    return pod.container("app", BUSYBOX_IMAGE, COMMAND, annotations=notes, attempt=next(attempts))


class Halted:
    """A restore that has come half-way."""

    def __init__(self, lane: Lane, container: Container, held: Gate) -> None:
        self.lane, self.container, self.gate = lane, container, held
        self.start = container.starting()
        held.wait()
        self.shim = shim_pid(lane, container.id)

    @property
    def engine(self) -> int:
        return children(self.shim, "shim/engine.py")[0]

    @property
    def criu(self) -> int:
        return next(pid for pid in children(self.shim, "criu: restore"))

    def call(self, method: str, request: Message, response: type[M]) -> M:
        with shim_client(self.lane, self.container.id) as shim:
            return shim.call(TASKS, method, request, response, timeout=60)


@pytest.fixture
def halted(lane: Lane, pod: Pod, worker: str) -> Iterator[Halted]:
    with gate(lane, STAGE) as held:
        # The gate must be in place when the container's task is created, in Start.
        restore = halt(lane, pod, worker, held)
        yield restore
    restore.container.remove()


def halt(lane: Lane, pod: Pod, worker: str, held: Gate) -> Halted:
    container = wanting(pod, worker)
    return Halted(lane, container, held)


def test_what_is_said_of_it_meanwhile(halted: Halted) -> None:
    of = halted.container.id
    state = halted.call("State", pb.StateRequest(id=of), pb.StateResponse)
    assert (state.status, state.pid) == (pb.CREATED, 0)
    connected = halted.call("Connect", pb.ConnectRequest(id=of), pb.ConnectResponse)
    assert (connected.shim_pid, connected.task_pid) == (halted.shim, 0)
    pids = halted.call("Pids", pb.PidsRequest(id=of), pb.PidsResponse)
    assert [process.pid for process in pids.processes] == [halted.engine]
    assert not halted.start.done()
    halted.gate.open()
    halted.start.result()
    assert outcome(halted.lane, halted.container).message == "restored"
    assert ask(halted.container).asked == 1


def by_ttrpc_kill(halted: Halted) -> None:
    halted.call("Kill", pb.KillRequest(id=halted.container.id, signal=9), Empty)


def by_ctr_kill(halted: Halted) -> None:
    command = ["tasks", "kill", "--signal", "SIGTERM", halted.container.id]
    halted.lane.ctr(*command, namespace=CRI_NAMESPACE)


def by_ctr_delete(halted: Halted) -> None:
    """Without a Kill: containerd lets a task be deleted that is created and has no pid."""
    deleted(halted, "tasks", "delete", halted.container.id)


def by_ctr_force(halted: Halted) -> None:
    deleted(halted, "tasks", "delete", "--force", halted.container.id)


def deleted(halted: Halted, *command: str) -> None:
    """The CRI deletes the task of a Start that failed, too, and may be the quicker one."""
    done = halted.lane.ctr(*command, namespace=CRI_NAMESPACE, check=False)
    assert done.returncode == 0 or "not found" in done.stderr


@pytest.mark.parametrize("end", [by_ttrpc_kill, by_ctr_kill, by_ctr_delete, by_ctr_force])
def test_kill_and_delete_end_it(halted: Halted, end: Callable[[Halted], None]) -> None:
    engine, criu = halted.engine, halted.criu
    end(halted)
    with pytest.raises(grpc.RpcError):
        halted.start.result(60)
    wait_until(lambda: not alive(engine) and not alive(criu), "the end of those at work")
    assert halted.container.status().state == api.CONTAINER_EXITED
    assert halted.container.log() == ""
    line = outcome(halted.lane, halted.container)
    assert (line.message, line.fields["reason"]) == ("restore cancelled", "Cancelled")


def test_a_killed_restore_is_stopped(halted: Halted) -> None:
    """As containerd 1.6 wants it: Wait returns, Kill finds nothing, Delete works."""
    by_ttrpc_kill(halted)
    of = halted.container.id
    with shim_client(halted.lane, of) as shim:
        ended = shim.call(TASKS, "Wait", pb.WaitRequest(id=of), pb.WaitResponse, timeout=60)
    assert ended.exit_status > 128
    with pytest.raises(grpc.RpcError):
        halted.start.result(60)


def test_stopping_the_pod(lane: Lane, worker: str) -> None:
    with gate(lane, STAGE) as held, lane.pod("stopped") as pod:
        restore = halt(lane, pod, worker, held)
        pod.stop()
        held.open()
        restore.start.exception(60)  # whether it came or not, the pod goes


@pytest.mark.parametrize("victim", ["engine", "criu"])
def test_killed_at_work(halted: Halted, victim: str) -> None:
    os.kill(getattr(halted, victim), signal.SIGKILL)
    if victim == "criu":
        halted.gate.open()  # its script is nobody's child now
    halted.start.result(60)
    boots_cold(halted, "RestoreFailed")


def boots_cold(halted: Halted, reason: str) -> None:
    line = outcome(halted.lane, halted.container)
    assert (line.message, line.fields["reason"]) == ("booting cold", reason)
    assert line.fields["hint"]
    assert halted.container.wait_for_log("booted").count("booted") == 1
    assert ask(halted.container).asked == 1


def test_a_deadline_that_is_too_short(lane: Lane, pod: Pod, worker: str) -> None:
    with gate(lane, STAGE, "[restore]\ndeadline = 0.3\n") as held:
        container = wanting(pod, worker)
        container.start()
        line = outcome(lane, container)
        assert (line.message, line.fields["reason"]) == ("booting cold", "DeadlineExceeded")
        container.wait_for_log("booted")  # what comes before it listens is lost
        assert ask(container).asked == 1
        held.open()
    container.remove()


def test_the_callers_deadline_leaves_room_for_the_cold_boot(
    lane: Lane, pod: Pod, worker: str
) -> None:
    with gate(lane, STAGE):
        container = wanting(pod, worker)
        container.start(deadline=8)
        line = outcome(lane, container)
        assert (line.message, line.fields["reason"]) == ("booting cold", "DeadlineExceeded")
        container.wait_for_log("booted")  # what comes before it listens is lost
        assert ask(container).asked == 1
    container.remove()


# -- a shim that is killed -------------------------------------------------------------------------


def test_a_shim_killed_over_a_restored_container(lane: Lane, worker: str) -> None:
    pod = lane.run_pod("orphans")
    restored = wanting(pod, worker).start()
    cold = pod.container("side", BUSYBOX_IMAGE, COMMAND).start()
    assert outcome(lane, restored).message == "restored"
    workers = [init_pid(lane, container.id) for container in (restored, cold)]
    os.kill(shim_pid(lane, restored.id), signal.SIGKILL)
    # What containerd says of tasks that it lost: its own word, or what `delete` answered.
    assert {restored.wait(), cold.wait()} <= {137, 255}
    wait_until(lambda: not any(map(alive, workers)), "the end of the workers")
    wait_until(lambda: removed(pod), "the end of the pod")


def test_a_shim_killed_in_the_middle_of_a_restore(lane: Lane, worker: str) -> None:
    with gate(lane, STAGE) as held:
        pod = lane.run_pod("headless")
        restore = halt(lane, pod, worker, held)
        engine, criu = restore.engine, restore.criu
        os.kill(restore.shim, signal.SIGKILL)
        with pytest.raises(grpc.RpcError):
            restore.start.result(60)
        wait_until(lambda: not alive(engine) and not alive(criu), "the end of those at work")
        wait_until(lambda: removed(pod), "the end of the pod")


def test_delete_by_hand_is_idempotent(private_lane: Lane) -> None:
    lane = private_lane
    with lane.pod("maker") as maker:
        lane.thaw("checkpoint", boot(maker).id, "worker", "--namespace", CRI_NAMESPACE)
    with gate(lane, STAGE) as held:
        pod = lane.run_pod("by-hand")
        restore = halt(lane, pod, "worker", held)
        cold = boot(pod, "side")
        folders = [bundle(lane, id) for id in (restore.container.id, cold.id, pod.id)]
        worker = init_pid(lane, cold.id)
        lane.stop(signal.SIGKILL)
        assert alive(worker)
        os.kill(restore.shim, signal.SIGKILL)
        wait_until(lambda: not alive(restore.shim), "the end of the shim")
    assert alive(worker)
    before = lane.holdings()
    for folder in folders:
        for _ in range(2):
            done = run_delete(lane, folder)
            assert done.returncode == 0
            assert pb_exit(done.stdout) == 137
            assert done.stderr.decode() == ""
        assert not [line for line in lane.holdings().mounts if line.startswith(f"{folder}/")]
    left = lane.holdings()
    assert not any(alive(int(line.split()[0])) for line in left.processes)
    assert len(left.cgroups) < len(before.cgroups)
    assert not any(lane.places.thaw_state.glob("*/*"))
    lane.start()
    pod.remove()


def run_delete(lane: Lane, folder: object) -> subprocess.CompletedProcess[bytes]:
    assert lane.installation
    flags = ["-namespace", CRI_NAMESPACE, "-address", str(lane.places.socket)]
    flags += ["-publish-binary", "/bin/true", "-id", str(folder).rpartition("/")[2]]
    return subprocess.run(
        [lane.installation.shim, *flags, "-bundle", str(folder), "delete"],
        cwd=str(folder),
        env=lane.environment(),
        capture_output=True,
        check=False,
        timeout=60,
    )


def pb_exit(answer: bytes) -> int:
    return int(pb.DeleteResponse.decode(answer).exit_status)
