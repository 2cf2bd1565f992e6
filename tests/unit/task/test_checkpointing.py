"""Who may be dumped, and what the engine is told; the engine is a fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fakes.pod import Behind, Pod

from shim.errors import (
    BadName,
    Cancelled,
    CheckpointFailed,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RestoreFailed,
    Unimplemented,
    WorkerFailed,
)
from shim.proto import events_pb, runc_pb
from shim.proto import task_pb as pb
from shim.proto.control_pb import CheckpointRequest
from shim.proto.known import pack
from shim.task.container import Container
from shim.task.control import ControlService
from shim.task.dumping import BEGUN, STOPPED, is_marked, mark
from shim.task.state import RUNNING
from shim.trial import REQUEST, folder_of

FOREVER = ("sleep", "1000")
REPLY = {"path": "/snapshots/warm", "bytes": 7 << 20, "seconds": 1.5, "frozen": 0.25}


class Group:
    def __init__(self, *pids: int) -> None:
        self._pids = list(pids)

    def pids(self) -> list[int]:
        return self._pids


@pytest.fixture
def running(pod: Pod, plays: Any) -> Pod:
    container = pod.create("c", *FOREVER)
    pod.start("c")
    group: Any = Group(container.init.pid, 4_000_000)
    container._cgroup = group
    plays.set("checkpoint", play="reply", reply=REPLY)
    return pod


def to_name(pod: Pod, **request: Any) -> Any:
    control = ControlService(pod.service)
    made = CheckpointRequest(**{"id": "c", "name": "warm", **request})
    return control.checkpoint(made, pod.call())


def to_path(pod: Pod, path: str = "/tmp/ctrd", **options: Any) -> None:
    packed = pack(runc_pb.CheckpointOptions(**options)) if options else None
    request = pb.CheckpointTaskRequest(id="c", path=path, options=packed)
    pod.service.checkpoint(request, pod.call())


def asked(plays: Any) -> dict[str, Any]:
    (request,) = plays.seen
    assert isinstance(request, dict)
    return request


def test_the_control_service() -> None:
    assert ControlService.NAME == "thaw.v1.Control"
    nobody: Any = None
    (name, method) = next(iter(ControlService(nobody).methods().items()))
    assert (name, method.request, method.inline) == ("Checkpoint", CheckpointRequest, False)


def test_under_a_name(running: Pod, plays: Any) -> None:
    answer = to_name(running)
    assert (answer.path, answer.bytes) == ("/snapshots/warm", 7 << 20)
    assert (answer.seconds, answer.frozen) == (1.5, 0.25)
    request = asked(plays)
    container = running.service.containers["c"]
    assert request["verb"] == "checkpoint"
    assert (request["id"], request["namespace"], request["name"]) == ("c", "test", "warm")
    assert request["pid"] == container.init.pid
    assert request["cgroup_pids"] == [container.init.pid, 4_000_000]
    assert request["exit"] is False
    assert request["folder"] == container.folder
    assert running.state("c").status == RUNNING


def test_with_exit(running: Pod, plays: Any) -> None:
    to_name(running, exit=True)
    assert asked(plays)["exit"] is True


@pytest.mark.parametrize("name", ["../x", "auto", "", "a/b"])
def test_a_bad_name_is_refused_before_anything_is_done(running: Pod, plays: Any, name: str) -> None:
    with pytest.raises(BadName):
        to_name(running, name=name)
    assert plays.seen == []


def test_an_unknown_container(running: Pod) -> None:
    with pytest.raises(NotFound, match="container x not created"):
        to_name(running, id="x")


def test_a_shared_pid_namespace(pod: Pod, plays: Any) -> None:
    pod.create("c", *FOREVER, spec={"linux": {"namespaces": []}})
    pod.start("c")
    with pytest.raises(FailedPrecondition, match="shares a pid namespace"):
        to_name(pod)
    assert plays.seen == []


@pytest.mark.parametrize("state", ["created", "stopped"])
def test_only_what_runs_can_be_dumped(pod: Pod, plays: Any, state: str) -> None:
    pod.create("c", *FOREVER)
    if state == "stopped":
        pod.kill("c")
        pod.wait("c").get()
    with pytest.raises(FailedPrecondition, match=f"cannot checkpoint container c: it is {state}"):
        to_name(pod)
    with pytest.raises(FailedPrecondition):
        to_path(pod)
    assert plays.seen == []


def test_into_containerds_folder(running: Pod, plays: Any) -> None:
    """CRI sends no options for a runtime that it does not know."""
    to_path(running)
    request = asked(plays)
    assert (request["name"], request["path"], request["exit"]) == ("", "/tmp/ctrd", False)
    (event,) = running.events.of(events_pb.TaskCheckpointed)
    assert (event.container_id, event.checkpoint) == ("c", "/tmp/ctrd")


def test_with_runcs_options(running: Pod, plays: Any) -> None:
    to_path(
        running,
        path="",
        image_path="/images",
        work_path="/work",
        exit=True,
        cgroups_mode="soft",
    )
    request = asked(plays)
    assert (request["path"], request["work_path"]) == ("/images", "/work")
    assert (request["exit"], request["cgroups_mode"]) == (True, "soft")


def test_options_of_another_type_do_not_count(running: Pod, plays: Any) -> None:
    request = pb.CheckpointTaskRequest(
        id="c", path="/tmp/ctrd", options=pack(runc_pb.Options(no_pivot_root=True))
    )
    running.service.checkpoint(request, running.call())
    assert asked(plays)["path"] == "/tmp/ctrd"


def test_what_cannot_be_done_is_refused(running: Pod, plays: Any) -> None:
    with pytest.raises(Unimplemented, match="empty namespaces"):
        to_path(running, empty_namespaces=["network"])
    with pytest.raises(InvalidArgument, match="not a path"):
        to_path(running, path="relative")
    assert plays.seen == []


def test_a_dump_that_fails_leaves_it_running(running: Pod, plays: Any) -> None:
    plays.fail("checkpoint", "CheckpointFailed", "cannot dump c", "the container runs on")
    with pytest.raises(CheckpointFailed, match="cannot dump c"):
        to_path(running)
    assert running.state("c").status == RUNNING
    assert running.events.of(events_pb.TaskCheckpointed) == []
    assert running.verbs()[-1] == "resume", "a dump that was broken off may leave it frozen"


def test_a_paused_container_stays_paused(running: Pod, plays: Any) -> None:
    plays.fail("checkpoint", "CheckpointFailed")
    running.service.containers["c"].pause()
    with pytest.raises(CheckpointFailed):
        to_path(running)
    assert "resume" not in running.verbs()


ACTIONS = {"thaw.dev/quiesce": "http:8000/sleep", "thaw.dev/resume": "http:8000/wake_up"}


def acted_on(pod: Pod, notes: dict[str, str] | None = None) -> None:
    folder = pod.folder / "control"
    folder.mkdir()
    mount = {"destination": "/snapshot-control", "source": str(folder), "options": ["rbind"]}
    annotations = ACTIONS if notes is None else notes
    container = pod.create("c", *FOREVER, spec={"annotations": annotations, "mounts": [mount]})
    pod.start("c")
    group: Any = Group()
    container._cgroup = group


def test_a_snapshot_that_left_its_worker_asleep(pod: Pod, plays: Any) -> None:
    acted_on(pod)
    reply = {**REPLY, "unresumed": "its worker cannot be resumed: http:8000/wake_up: answered 500"}
    plays.set("checkpoint", play="reply", reply=reply)
    for dump in (to_name, to_path):
        with pytest.raises(WorkerFailed, match=r"snapshot /snapshots/warm is made, but .* 500"):
            dump(pod)


def test_a_paused_worker_can_do_nothing(pod: Pod, plays: Any) -> None:
    """It would not answer, and nobody could resume it meanwhile."""
    acted_on(pod)
    pod.service.containers["c"].pause()
    with pytest.raises(FailedPrecondition, match="is paused"):
        to_name(pod)
    assert plays.seen == []


def test_a_bad_action_does_not_count(pod: Pod, plays: Any) -> None:
    """Create has said so."""
    acted_on(pod, {"thaw.dev/quiesce": "gently"})
    plays.set("checkpoint", play="reply", reply=REPLY)
    to_name(pod)
    assert plays.verbs == ["checkpoint"]


@pytest.mark.parametrize("resume", [True, False])
def test_the_engine_dies_over_a_quiet_worker(pod: Pod, plays: Any, resume: bool) -> None:
    """Another one resumes it, and gives it back its GPUs, of which nobody here knows."""
    acted_on(pod, ACTIONS if resume else {})
    plays.set("checkpoint", play="die")
    plays.set("resume", play="reply", reply={})
    with pytest.raises(RestoreFailed, match="died"):
        to_name(pod)
    assert plays.verbs == ["checkpoint", "resume"]
    assert plays.seen[1]["pid"] == pod.service.containers["c"].init.pid


def test_it_cannot_be_resumed_either(pod: Pod, plays: Any, logged: Callable[[], str]) -> None:
    acted_on(pod)
    plays.set("checkpoint", play="die")
    plays.fail("resume", "WorkerFailed", "http:8000/wake_up: nobody listens")
    with pytest.raises(RestoreFailed):
        to_name(pod)
    assert "nobody listens" in logged()


def test_the_engine_dies_over_a_trial(pod: Pod, plays: Any, logged: Callable[[], str]) -> None:
    """Another one removes what is left of that before all else; done or not, the reason stays."""
    acted_on(pod, {})
    folder = pod.service.containers["c"].folder
    trial = Path(folder_of(folder))
    trial.mkdir()
    (trial / REQUEST).touch()
    plays.set("checkpoint", play="die")
    plays.set("resume", play="reply", reply={})
    plays.fail("end-trial", "RestoreFailed", "it is stuck")
    with pytest.raises(RestoreFailed, match="the engine process died"):
        to_name(pod)
    assert plays.verbs == ["checkpoint", "end-trial", "resume"]
    assert plays.seen[1]["folder"] == folder
    assert "it is stuck" in logged()


def test_what_became_of_a_trial_is_logged(pod: Pod, plays: Any, logged: Callable[[], str]) -> None:
    acted_on(pod, {})
    plays.set("checkpoint", play="reply", reply={**REPLY, "verified": "restored"})
    to_name(pod)
    assert "snapshot verified" in logged()
    plays.set("checkpoint", play="reply", reply={**REPLY, "verified": "not restored: no room"})
    to_name(pod)
    assert 'because="not restored: no room"' in logged()


class Quiescing(NamedTuple):
    container: Container
    dumping: Behind
    engine: int

    def let_criu_begin(self) -> None:
        mark(self.container.folder, BEGUN)


@pytest.fixture
def quiescing(pod: Pod, plays: Any) -> Iterator[Quiescing]:
    """A checkpoint by hand whose engine is at it, and does not answer."""
    acted_on(pod)
    child = pod.folder / "child"
    plays.set("checkpoint", play="hang", child=str(child))
    plays.set("resume", play="reply", reply={})
    dumping = Behind(lambda: to_path(pod))
    pod.node.until(child.exists)
    made = Quiescing(pod.service.containers["c"], dumping, parent_of(int(child.read_text())))
    yield made
    pod.node.reaper.kill(made.engine, 9)


def test_other_verbs_wait_and_kill_does_not(quiescing: Quiescing, pod: Pod) -> None:
    quiescing.let_criu_begin()
    pausing = Behind(quiescing.container.pause)
    pod.kill("c")
    assert pod.wait("c").get().exit_status == 137
    assert "pause" not in pod.verbs()
    pod.node.reaper.kill(quiescing.engine, 9)
    with pytest.raises(RestoreFailed, match="the engine process died"):
        quiescing.dumping.get()
    with pytest.raises(FailedPrecondition, match="it is stopped"):
        pausing.get()


def test_a_quiesce_that_hangs_does_not_outlive_the_container(
    quiescing: Quiescing, pod: Pod, plays: Any
) -> None:
    """Its server may be another container's; and nobody wakes one that has ended."""
    pod.kill("c")
    pod.wait("c").get()
    pod.delete("c")
    with pytest.raises(Cancelled):
        quiescing.dumping.get()
    assert plays.verbs == ["checkpoint"]


def test_what_an_operator_asks_for_goes_on_when_it_is_told_to_stop(
    quiescing: Quiescing, pod: Pod
) -> None:
    pod.kill("c", 28)
    assert is_marked(quiescing.container.folder, STOPPED)
    pod.node.reaper.kill(quiescing.engine, 9)
    with pytest.raises(RestoreFailed, match="the engine process died"):
        quiescing.dumping.get()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
