"""What the Task service answers, beyond what the containers' own tests show."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakes.pod import Behind, Pod, open_gate

from shim.errors import InvalidArgument, NotFound
from shim.proto import events_pb, runc_pb
from shim.proto import task_pb as pb
from shim.proto.cgroups_v1_pb import Metrics
from shim.proto.known import Any as Packed
from shim.proto.known import pack, unpack
from shim.task.service import NAMES
from shim.task.state import RUNNING, STOPPED

FOREVER = ("sleep", "1000")
METHODS = [
    *("Checkpoint", "CloseIO", "Connect", "Create", "Delete", "Exec", "Kill", "Pause", "Pids"),
    *("ResizePty", "Resume", "Shutdown", "Start", "State", "Stats", "Update", "Wait"),
]


class Group:
    """A cgroup with the pids that it is given."""

    def __init__(self, *pids: int) -> None:
        self._pids = list(pids)

    def pids(self) -> list[int]:
        return self._pids

    def stats(self) -> Metrics:
        return Metrics()


def give_cgroup(pod: Pod, *pids: int) -> None:
    group: Any = Group(*pids)
    pod.service.containers["c"]._cgroup = group


def test_both_versions_have_every_method(pod: Pod) -> None:
    assert NAMES == ("containerd.task.v2.Task", "containerd.task.v3.Task")
    assert sorted(pod.service.methods()) == METHODS


def test_what_runs_runc_has_a_thread_of_its_own(pod: Pod) -> None:
    """An inline handler that waits would stop every other container's output and exits."""
    inline = {name for name, method in pod.service.methods().items() if method.inline}
    assert inline == {
        *("State", "Wait", "Exec", "ResizePty", "CloseIO", "Pids", "Connect", "Shutdown")
    }


@pytest.mark.parametrize("name", [m for m in METHODS if m not in ("Connect", "Shutdown", "Create")])
def test_an_unknown_container(pod: Pod, name: str) -> None:
    method = pod.service.methods()[name]
    more: dict[str, Any] = {}
    if name == "Exec":
        more = {"exec_id": "e", "spec": Packed()}
    if name == "Update":
        more = {"resources": Packed()}
    request: Any = method.request
    with pytest.raises(NotFound, match="container x not created"):
        method.handler(request(id="x", **more), pod.call())


def test_connect_knows_no_unknown_container(pod: Pod) -> None:
    answer = pod.service.connect(pb.ConnectRequest(id="x"), pod.call())
    assert (answer.shim_pid, answer.task_pid) == (os.getpid(), 0)
    container = pod.create("c", *FOREVER)
    answer = pod.service.connect(pb.ConnectRequest(id="c"), pod.call())
    assert answer.task_pid == container.init.pid


def test_shutdown_only_when_the_last_container_is_gone(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    pod.service.shutdown(pb.ShutdownRequest(id="c"), pod.call())
    assert not pod.over.is_set()
    pod.delete("c")
    pod.service.shutdown(pb.ShutdownRequest(id="c"), pod.call())
    assert pod.over.is_set()


def test_shutdown_while_one_is_being_created(pod: Pod) -> None:

    gate = pod.gate("create")
    creating = Behind(lambda: pod.create("c", *FOREVER))
    pod.node.until(lambda: "create" in pod.verbs())
    pod.service.shutdown(pb.ShutdownRequest(), pod.call())
    assert not pod.over.is_set()
    open_gate(gate)
    creating.get()


def test_create_announces_what_it_made(pod: Pod) -> None:
    os.mkfifo(pod.folder / "out")
    container = pod.create("c", *FOREVER, stdout=str(pod.folder / "out"))
    (event,) = pod.events.of(events_pb.TaskCreate)
    assert event.container_id == "c"
    assert event.pid == container.init.pid
    assert event.bundle == str(pod.folder / "bundles/c")
    assert event.io.stdout == str(pod.folder / "out")


def test_state_of_a_running_container(pod: Pod) -> None:
    os.mkfifo(pod.folder / "out")
    pod.create("c", *FOREVER, stdout=str(pod.folder / "out"))
    pid = pod.start("c")
    assert pod.state("c") == pb.StateResponse(
        id="c",
        bundle=str(pod.folder / "bundles/c"),
        pid=pid,
        status=RUNNING,
        stdout=str(pod.folder / "out"),
    ), "no exited_at before the exit"
    pod.kill("c")
    answer = pod.wait("c").get()
    state = pod.state("c")
    assert (state.status, state.exit_status) == (STOPPED, 137)
    assert state.exited_at == answer.exited_at


def test_many_wait_and_later_ones_are_answered_at_once(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    pod.start("c")
    waiting = [pod.wait("c") for _ in range(5)]
    pod.kill("c")
    assert {answer.get().exit_status for answer in waiting} == {137}
    late = pod.wait("c")
    assert not late.pending
    assert late.get() == waiting[0].get()


def test_pids_say_which_exec_they_are(pod: Pod) -> None:
    container = pod.create("c", *FOREVER)
    pod.start("c")
    pod.exec("c", "e", *FOREVER)
    pid = pod.start("c", "e")
    give_cgroup(pod, container.init.pid, pid, 4_000_000)
    found = pod.service.pids(pb.PidsRequest(id="c"), pod.call()).processes
    assert [process.pid for process in found] == [container.init.pid, pid, 4_000_000]
    assert found[0].info is None
    assert found[2].info is None
    assert unpack(found[1].info, runc_pb.ProcessDetails).exec_id == "e"


def test_stats_are_in_a_type_that_cri_knows(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    give_cgroup(pod)
    stats = pod.service.stats(pb.StatsRequest(id="c"), pod.call()).stats
    assert stats is not None
    assert stats.type_url == "io.containerd.cgroups.v1.Metrics"


def test_update(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    resources = Packed(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        value=b'{"cpu":{"shares":512}}',
    )
    pod.service.update(pb.UpdateTaskRequest(id="c", resources=resources), pod.call())
    written = (pod.folder / "runc/resources").read_text()
    assert json.loads(written) == {"cpu": {"shares": 512}}


@pytest.mark.parametrize("resources", [None, pack(runc_pb.Options())])
def test_an_update_without_resources(pod: Pod, resources: Packed | None) -> None:
    pod.create("c", *FOREVER)
    with pytest.raises(InvalidArgument, match="resources"):
        pod.service.update(pb.UpdateTaskRequest(id="c", resources=resources), pod.call())


@pytest.mark.parametrize(
    "request_", [pb.ExecProcessRequest(id="c"), pb.ExecProcessRequest(id="c", exec_id="e")]
)
def test_an_exec_without_what_it_needs(pod: Pod, request_: pb.ExecProcessRequest) -> None:
    pod.create("c", *FOREVER)
    with pytest.raises(InvalidArgument, match="without"):
        pod.service.exec(request_, pod.call())


def test_resize_of_an_exec_that_has_ended(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    pod.start("c")
    resize = pb.ResizePtyRequest(id="c", width=80, height=24)
    pod.service.resize_pty(resize, pod.call())  # no terminal: no effect, no error
    pod.exec("c", "e", "true")
    pod.start("c", "e")
    pod.wait("c", "e").get()
    resize.exec_id = "e"
    with pytest.raises(NotFound, match="exec e has ended"):
        pod.service.resize_pty(resize, pod.call())


def test_close_io(pod: Pod) -> None:
    os.mkfifo(pod.folder / "in")
    pod.create("c", "cat", stdin=str(pod.folder / "in"))
    pod.start("c")
    with open(pod.folder / "in", "w"):
        pod.service.close_io(pb.CloseIORequest(id="c"), pod.call())
        assert pod.wait("c").pending
        pod.service.close_io(pb.CloseIORequest(id="c", stdin=True), pod.call())
    assert pod.wait("c").get().exit_status == 0


def test_pause_and_resume_reach_runc(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    pod.start("c")
    pod.service.pause(pb.PauseRequest(id="c"), pod.call())
    pod.service.resume(pb.ResumeRequest(id="c"), pod.call())
    assert pod.verbs() == ["create", "start", "pause", "resume"]


def test_containers_come_and_go_in_any_order(pod: Pod) -> None:
    for name in ("a", "b", "c"):
        pod.create(name, *FOREVER)
        pod.start(name)
    for name in ("b", "a"):
        pod.kill(name)
        pod.wait(name).get()
        pod.delete(name)
    assert pod.state("c").status == RUNNING
    assert (Path(pod.service.containers["c"].folder)).is_dir()
    assert not pod.over.is_set()
