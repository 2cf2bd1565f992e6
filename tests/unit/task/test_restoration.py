"""Containers that come from a snapshot, with a fake engine that restores or does not."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.host import open_fds
from fakes.pod import READ_GATE, Behind, Pod, at_gate, open_gate

from shim.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    RestoreFailed,
    ThawError,
    Unfit,
)
from shim.proto import events_pb as pb
from shim.proto import task_pb
from shim.task.container import Container
from shim.task.engine import Engine
from shim.task.restoration import Restoration
from shim.task.state import CREATED, RUNNING, STOPPED

FOREVER = ("sleep", "1000")
NOTES = {"thaw.dev/snapshot": "warm"}
STRICT = {**NOTES, "thaw.dev/on-failure": "fail"}


def annotated(pod: Pod, notes: dict[str, str], *args: str, **more: Any) -> Container:
    pod.snapshot("warm")
    return pod.create("c", *(args or FOREVER), spec={"annotations": notes}, **more)


def test_a_restored_container_is_a_container(pod: Pod, plays: Any) -> None:
    plays.set("restore", play="restore", args=["sh", "-c", READ_GATE, str(pod.folder / "gate")])
    os.mkfifo(pod.folder / "gate")
    container = annotated(pod, NOTES)
    assert container.init.pid == 0, "Create answers pid 0"
    assert pod.state("c").status == CREATED
    assert pod.state("c").pid == 0
    waiting = pod.wait("c")
    pid = pod.start("c")
    assert pid == container.init.pid > 0
    assert pod.state("c").status == RUNNING
    open_gate(pod.folder / "gate")
    assert waiting.get().exit_status == 0
    pod.delete("c")
    pod.events.wait_for(pb.TaskDelete)
    assert pod.events.names() == ["TaskCreate", "TaskStart", "TaskExit", "TaskDelete"]
    assert pod.verbs() == ["delete"], "runc restore is the engine's"


def test_what_the_engine_is_told(pod: Pod, plays: Any) -> None:
    plays.set("restore", play="restore", args=list(FOREVER))
    container = annotated(pod, {**NOTES, "io.kubernetes.cri.container-name": "main"})
    pod.start("c")
    (request,) = plays.seen
    config = request.pop("config")
    assert config["snapshots"] == str(pod.folder / "snapshots")
    assert request == {
        "verb": "restore",
        "id": "c",
        "namespace": "test",
        "bundle": str(pod.folder / "bundles/c"),
        "folder": container.folder,
        "rootfs": [],
        "terminal": False,
        "containerd": "",
        "snapshot": str(pod.snapshot("warm")),
        "name": "warm",
        "outright": False,
        "fds": [],
    }


def test_its_output_arrives(pod: Pod, plays: Any) -> None:
    plays.set("restore", play="restore", args=["sh", "-c", "echo thawed"])
    os.mkfifo(pod.folder / "out")
    reader = os.open(pod.folder / "out", os.O_RDONLY | os.O_NONBLOCK)
    annotated(pod, NOTES, stdout=str(pod.folder / "out"))
    pod.start("c")
    pod.wait("c").get()
    pod.delete("c")
    assert os.read(reader, 99) == b"thawed\n"
    assert os.read(reader, 99) == b""
    os.close(reader)


def test_a_checkpoint_of_containerds_is_restored_or_fails(pod: Pod, plays: Any) -> None:
    plays.fail("restore", "RestoreFailed", "criu said no")
    pod.create("c", *FOREVER, checkpoint="/tmp/ctrd-checkpoint1")
    with pytest.raises(RestoreFailed, match="criu said no"):
        pod.start("c")
    assert plays.seen[0]["snapshot"] == "/tmp/ctrd-checkpoint1"
    assert plays.seen[0]["name"] == ""
    assert pod.state("c").status == STOPPED


def test_a_failed_restore_boots_cold(pod: Pod, plays: Any, logged: Callable[[], str]) -> None:
    plays.fail(
        "restore", "Unfit", "made from image a, the pod has b", "make a snapshot of this pod"
    )
    annotated(pod, NOTES, "sh", "-c", "exit 6")
    waiting = pod.wait("c")
    assert pod.start("c") > 0
    assert waiting.get().exit_status == 6
    assert plays.verbs == ["restore"], "nothing was touched"
    assert pod.verbs()[:2] == ["create", "start"]
    assert pod.events.wait_for(pb.TaskExit)
    assert pod.events.names() == ["TaskCreate", "TaskStart", "TaskExit"]
    (line,) = [line for line in logged().splitlines() if "booting cold" in line]
    for word in (
        "level=warning",
        "reason=Unfit",
        'error="made from image a, the pod has b"',
        'hint="make a snapshot of this pod"',
        "snapshot=warm",
    ):
        assert word in line


def test_the_cold_boot_has_its_output(pod: Pod, plays: Any) -> None:
    plays.fail("restore", "RestoreFailed")
    os.mkfifo(pod.folder / "out")
    reader = os.open(pod.folder / "out", os.O_RDONLY | os.O_NONBLOCK)
    annotated(pod, NOTES, "sh", "-c", "echo cold", stdout=str(pod.folder / "out"))
    pod.start("c")
    pod.wait("c").get()
    pod.delete("c")
    assert os.read(reader, 99) == b"cold\n"
    os.close(reader)


@pytest.mark.parametrize("play", ["die", "half"])
def test_an_engine_that_dies_is_a_failed_restore(pod: Pod, plays: Any, play: str) -> None:
    plays.set("restore", play=play)
    annotated(pod, NOTES)
    assert pod.start("c") > 0
    assert pod.verbs()[:2] == ["create", "start"]
    assert plays.verbs == ["restore", "undo"]


def test_on_failure_fail(pod: Pod, plays: Any) -> None:
    plays.fail("restore", "Unfit", "another image")
    before = open_fds()
    annotated(pod, STRICT)
    waiting = pod.wait("c")
    with pytest.raises(Unfit, match="another image"):
        pod.start("c")
    assert pod.state("c").status == STOPPED
    assert waiting.get().exit_status == 137
    with pytest.raises(NotFound):
        pod.kill("c")
    assert plays.verbs == ["restore"]
    assert pod.verbs() == []
    pod.delete("c")
    assert pod.events.names() == ["TaskCreate", "TaskDelete"], "no exit without a start"
    pod.node.until(lambda: not pod.node._children())
    assert open_fds(before) == set()


def test_what_cannot_be_undone_is_not_booted_cold(pod: Pod, plays: Any) -> None:
    plays.fail("restore", "RestoreFailed", "first")
    plays.fail("undo", "Unknown", "a mount is busy")
    annotated(pod, NOTES)
    with pytest.raises(RestoreFailed, match="cannot clean up: a mount is busy"):
        pod.start("c")
    assert pod.state("c").status == STOPPED
    assert pod.verbs() == []


def test_a_snapshot_of_another_container_of_the_pod(
    pod: Pod, plays: Any, logged: Callable[[], str]
) -> None:
    """The sidecar of a pod whose annotation means its worker: nothing has failed."""
    plays.fail("restore", "OtherContainer", "the snapshot is of container 'worker'")
    annotated(pod, STRICT)
    assert pod.start("c") > 0
    assert plays.verbs == ["restore"]
    lines = [line for line in logged().splitlines() if "OOM" not in line]
    assert lines
    assert not [line for line in lines if "level=info" not in line]


@pytest.mark.parametrize("gpu", [True, False])
def test_it_may_have_a_gpu_itself(
    pod: Pod, plays: Any, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    """And needs all of its memory, of which some was taken for the one that is meant."""
    told: list[int] = []
    monkeypatch.setattr(Engine, "give_way", lambda engine: told.append(engine.pid))
    plays.fail("restore", "OtherContainer", "the snapshot is of container 'worker'")
    container = annotated(pod, STRICT)
    own = container.pids()
    if gpu:
        spec = container.bundle.spec()
        device = {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}
        spec.setdefault("linux", {})["devices"] = [device]
        container.bundle.save(spec)
    pod.start("c")
    assert told == (own if gpu else [])


def test_a_cold_boot_that_fails_too(pod: Pod, plays: Any) -> None:
    plays.fail("restore", "RestoreFailed")
    annotated(pod, NOTES, "/no/such/binary")
    waiting = pod.wait("c")
    with pytest.raises(ThawError, match="executable file not found"):
        pod.start("c")
    assert pod.state("c").status == STOPPED
    assert waiting.get().exit_status == 137
    pod.delete("c")
    assert pod.events.names() == ["TaskCreate", "TaskDelete"]


def hanging(pod: Pod, plays: Any, notes: dict[str, str]) -> tuple[Behind, int]:
    """A container whose restore never ends, and the pid of a process that it has made."""
    path = pod.folder / "child"
    plays.set("restore", play="hang", child=str(path))
    annotated(pod, notes)
    starting = pod.start_behind("c")
    pod.node.until(path.exists)
    return starting, int(path.read_text())


def test_while_it_is_restored(pod: Pod, plays: Any) -> None:
    starting, _ = hanging(pod, plays, NOTES)
    assert pod.state("c").status == CREATED
    assert pod.state("c").pid == 0
    answer = pod.service.connect(task_pb.ConnectRequest(id="c"), pod.call())
    assert (answer.task_pid, answer.shim_pid) == (0, os.getpid())
    (process,) = pod.service.pids(task_pb.PidsRequest(id="c"), pod.call()).processes
    assert "engine.py" in Path(f"/proc/{process.pid}/cmdline").read_text()
    pod.kill("c")
    with pytest.raises(Cancelled):
        starting.get()


def test_kill_cancels_a_restore(pod: Pod, plays: Any) -> None:
    starting, child = hanging(pod, plays, NOTES)
    waiting = pod.wait("c")
    pod.kill("c", signal.SIGTERM)
    with pytest.raises(Cancelled):
        starting.get()
    assert waiting.get().exit_status == 137
    assert pod.state("c").status == STOPPED
    with pytest.raises(NotFound):
        pod.kill("c")
    assert plays.verbs == ["restore", "undo"]
    assert pod.verbs() == [], "no cold boot"
    pod.node.until(lambda: not os.path.exists(f"/proc/{child}"))
    pod.delete("c")
    assert pod.events.names() == ["TaskCreate", "TaskDelete"]


def test_delete_cancels_a_restore(pod: Pod, plays: Any) -> None:
    starting, child = hanging(pod, plays, NOTES)
    pod.delete("c")
    with pytest.raises(Cancelled):
        starting.get()
    pod.node.until(lambda: not os.path.exists(f"/proc/{child}"))
    with pytest.raises(NotFound):
        pod.state("c")
    assert list((pod.folder / "state").iterdir()) == []


def test_kill_before_start(pod: Pod, plays: Any) -> None:
    annotated(pod, NOTES)
    waiting = pod.wait("c")
    pod.kill("c", signal.SIGTERM)
    assert waiting.get().exit_status == 143
    with pytest.raises(FailedPrecondition, match="it is stopped"):
        pod.start("c")
    assert pod.verbs() == []
    pod.delete("c")
    pod.node.until(lambda: not pod.node._children())


def test_delete_before_start(pod: Pod, plays: Any) -> None:
    before = open_fds()
    annotated(pod, NOTES)
    pod.delete("c")
    pod.node.until(lambda: not pod.node._children())
    assert open_fds(before) == set()


def test_a_kill_during_the_cold_boot_is_not_lost(pod: Pod, plays: Any) -> None:
    plays.fail("restore", "RestoreFailed")
    annotated(pod, NOTES)
    gate = pod.gate("create")
    starting = pod.start_behind("c")
    pod.node.until(lambda: "create" in pod.verbs())
    pod.kill("c", signal.SIGTERM)
    open_gate(gate)
    with pytest.raises(Cancelled):
        starting.get()
    assert pod.wait("c").get().exit_status == 137
    assert pod.state("c").status == STOPPED
    pod.delete("c")
    assert pod.events.of(pb.TaskStart) == []


def test_a_kill_while_the_cold_boot_starts_goes_to_runc(pod: Pod, plays: Any) -> None:
    plays.fail("restore", "RestoreFailed")
    annotated(pod, NOTES)
    gate = pod.gate("start-done")
    starting = pod.start_behind("c")
    with at_gate(gate):
        pod.kill("c", signal.SIGKILL)
    starting.get()
    assert pod.wait("c").get().exit_status == 137
    assert ["kill", "c", "9"] in pod.calls()


def test_a_deadline_that_is_too_short(pod: Pod, plays: Any, logged: Callable[[], str]) -> None:
    pod.settings["restore.deadline"] = 0.05
    plays.set("restore", play="hang", child=str(pod.folder / "child"))
    annotated(pod, NOTES)
    assert pod.start("c") > 0
    assert "reason=DeadlineExceeded" in logged()
    assert pod.state("c").status == RUNNING


def test_the_callers_deadline_counts_too(pod: Pod, plays: Any) -> None:
    plays.set("restore", play="hang", child=str(pod.folder / "child"))
    annotated(pod, STRICT)
    with pytest.raises(DeadlineExceeded):
        pod.start("c", seconds=1)


@pytest.mark.parametrize(
    ("allowed", "left", "seconds"),
    [
        (60.0, None, 60.0),
        (60.0, 120.0, 60.0),  # kubelet's two minutes: half a minute is kept
        (100.0, 120.0, 90.0),
        (60.0, 40.0, 20.0),  # a short one: half of it
        (60.0, 2.0, 1.0),
        (60.0, 0.0, 0.0),
        (60.0, -5.0, 0.0),
    ],
)
def test_how_long_a_restore_may_take(
    monkeypatch: pytest.MonkeyPatch, allowed: float, left: float | None, seconds: float
) -> None:
    class Config:
        def number(self, name: str) -> float:
            assert name == "restore.deadline"
            return allowed

    class Fake:
        config = Config()

    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    nobody: Any = None
    restoration = Restoration(nobody, nobody)
    container: Any = Fake()
    deadline = None if left is None else 1000.0 + left
    assert restoration._seconds(container, deadline) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("leaf", "event"), [("Unfit", "refuse"), ("Denied", "refuse"), ("RestoreFailed", "restore")]
)
def test_a_failure_is_in_the_audit_log(pod: Pod, plays: Any, leaf: str, event: str) -> None:
    plays.fail("restore", leaf, "because")
    annotated(pod, {**NOTES, "io.kubernetes.cri.sandbox-name": "worker-1"})
    pod.start("c")
    (line,) = map(json.loads, (pod.folder / "audit.log").read_text().splitlines())
    assert (line["event"], line["outcome"], line["reason"]) == (event, "cold boot", leaf)
    assert (line["name"], line["id"]) == ("warm", pod.snapshot("warm").name)
    assert (line["pod"], line["container"]) == ("worker-1", "c")


def test_so_is_an_engine_that_died(pod: Pod, plays: Any) -> None:
    """Then nobody else could say it."""
    plays.set("restore", play="die")
    annotated(pod, STRICT)
    with pytest.raises(RestoreFailed):
        pod.start("c")
    (line,) = map(json.loads, (pod.folder / "audit.log").read_text().splitlines())
    assert (line["event"], line["outcome"]) == ("restore", "failed")
    assert "died" in line["error"]
