"""A container's life with real processes, the daemon's own loop and reaper, and a fake runc."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from fakes.host import open_fds
from fakes.pod import READ_GATE, Behind, Pod, open_gate

from shim.errors import AlreadyExists, FailedPrecondition, NotFound, RuntimeFailed
from shim.proto import events_pb as pb
from shim.removal import remove_folder
from shim.task.container import Container
from shim.task.state import CREATED, PAUSED, PAUSING, RUNNING, STOPPED

FOREVER = ("sleep", "1000")


def exit_seen(container: Container) -> Any:
    return lambda: container.exits.init_end is not None


def test_from_create_to_delete(pod: Pod) -> None:
    container = pod.create("c", "sh", "-c", "exit 7")
    assert container.init.pid > 0
    assert pod.state("c").status == CREATED
    waiting = pod.wait("c")
    assert waiting.pending
    assert pod.start("c") == container.init.pid
    answer = waiting.get()
    assert answer.exit_status == 7
    state = pod.state("c")
    assert (state.status, state.exit_status) == (STOPPED, 7)
    assert state.exited_at == answer.exited_at
    deleted = pod.delete("c")
    assert (deleted.pid, deleted.exit_status) == (container.init.pid, 7)
    assert pod.events.names() == ["TaskCreate", "TaskStart", "TaskExit", "TaskDelete"]
    assert pod.events.of(pb.TaskExit)[0].id == "c", "init's exit carries the container's id"
    assert pod.verbs() == ["create", "start", "delete"]


def test_nothing_is_left_after_delete(pod: Pod) -> None:
    before = open_fds()
    fifos = {name: str(pod.folder / name) for name in ("stdin", "stdout", "stderr")}
    for path in fifos.values():
        os.mkfifo(path)
    pod.create("c", *FOREVER, **fifos)
    pod.start("c")
    pod.kill("c")
    pod.wait("c").get()
    pod.delete("c")
    pod.node.do(lambda: None)
    assert open_fds(before) == set()
    assert list((pod.folder / "state").iterdir()) == []
    assert not list(pod.folder.glob("runc/test/*"))
    with pytest.raises(NotFound, match="container c not created"):
        pod.state("c")


def test_exit_never_overtakes_start(pod: Pod) -> None:
    container = pod.create("c", "sh", "-c", "exit 3")
    waiting = pod.wait("c")
    gate = pod.gate("start-done")
    starting = pod.start_behind("c")
    pod.node.until(exit_seen(container))
    assert pod.events.names() == ["TaskCreate"], "it has ended, but nobody has heard of its start"
    assert waiting.pending
    open_gate(gate)
    assert starting.get() == container.init.pid
    assert waiting.get().exit_status == 3
    assert pod.events.wait_for(pb.TaskExit).exit_status == 3
    assert pod.events.names() == ["TaskCreate", "TaskStart", "TaskExit"]


def test_exit_never_overtakes_the_answer_to_kill(pod: Pod) -> None:
    """containerd 1.6 drops the connection, and with it that answer, once it hears of the exit."""
    container = pod.create("c", *FOREVER)
    pod.start("c")
    waiting = pod.wait("c")
    gate = pod.gate("kill-done")
    killing = Behind(lambda: pod.kill("c", signal.SIGKILL))
    pod.node.until(exit_seen(container))
    assert waiting.pending
    assert "TaskExit" not in pod.events.names()
    open_gate(gate)
    killing.get()
    assert waiting.get().exit_status == 137


def test_an_exit_between_create_and_its_answer_is_kept(pod: Pod) -> None:
    """init may be dead before its pid has been read."""
    gate = pod.gate("create-done")
    os.mkfifo(pod.folder / "never")

    creating = Behind(lambda: pod.create("c", *FOREVER))
    pid_file = pod.folder / "bundles/c/init.pid"
    pod.node.until(lambda: pid_file.exists() and pid_file.read_text())
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    open_gate(gate)
    creating.get()
    assert pod.wait("c").get().exit_status == 137
    assert pod.state("c").status == STOPPED
    assert pod.events.wait_for(pb.TaskExit).exit_status == 137
    assert pod.events.names() == ["TaskCreate", "TaskExit"]
    pod.delete("c")


def test_init_killed_before_start(pod: Pod) -> None:
    """containerd's TestIssue9103."""
    pod.create("c", *FOREVER)
    pod.kill("c", signal.SIGKILL)
    assert pod.wait("c").get().exit_status == 137
    assert pod.state("c").status == STOPPED
    with pytest.raises(FailedPrecondition, match="cannot start container c: it is stopped"):
        pod.start("c")
    assert pod.delete("c").exit_status == 137


def test_inits_exit_is_the_last_of_its_container(pod: Pod) -> None:
    gates = [pod.folder / "a", pod.folder / "b"]
    for gate in gates:
        os.mkfifo(gate)
    container = pod.create("c", *FOREVER)
    pod.start("c")
    for gate in gates:
        pod.exec("c", gate.name, "sh", "-c", READ_GATE, str(gate))
        pod.start("c", gate.name)
    waiting = pod.wait("c")
    pod.kill("c")
    pod.node.until(exit_seen(container))
    assert pod.events.of(pb.TaskExit) == []
    open_gate(gates[1])
    pod.events.wait_for(pb.TaskExit, 1)
    pod.node.do(lambda: None)
    assert waiting.pending
    open_gate(gates[0])
    pod.events.wait_for(pb.TaskExit, 3)
    assert [exit.id for exit in pod.events.of(pb.TaskExit)] == ["b", "a", "c"]
    assert waiting.get().exit_status == 137


def test_a_refused_start_ends_in_stopped(pod: Pod) -> None:
    container = pod.create("c", *FOREVER)
    waiting = pod.wait("c")
    pod.fail("start", "no such thing")
    with pytest.raises(RuntimeFailed, match="start c: no such thing"):
        pod.start("c")
    assert pod.state("c").status == STOPPED
    assert waiting.get().exit_status == 137
    with pytest.raises(NotFound):
        pod.kill("c")
    pod.node.until(exit_seen(container))
    pod.node.do(lambda: None)
    assert pod.events.names() == ["TaskCreate"], "no exit without a start"
    pod.delete("c")
    assert pod.events.names() == ["TaskCreate", "TaskDelete"]


def test_a_refused_create_leaves_nothing(pod: Pod) -> None:
    """containerd's TestContainerNoBinaryExists: it must fail here, not at Start."""
    before = open_fds()
    os.mkfifo(pod.folder / "out")
    with pytest.raises(RuntimeFailed, match="executable file not found"):
        pod.create("c", "/no/such/binary", stdout=str(pod.folder / "out"))
    pod.node.do(lambda: None)
    assert open_fds(before) == set()
    assert pod.events.names() == []
    assert list((pod.folder / "state").iterdir()) == []
    assert pod.verbs() == ["create", "delete"]
    with pytest.raises(NotFound):
        pod.state("c")
    (pod.folder / "bundles/c").rename(pod.folder / "bundles/old")
    pod.create("c", *FOREVER)  # the id is free again


def test_an_id_is_taken_once(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    (pod.folder / "bundles/c").rename(pod.folder / "bundles/old")
    with pytest.raises(AlreadyExists, match="container c exists"):
        pod.create("c", *FOREVER)


def test_delete_of_a_created_container_ends_it(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    assert pod.delete("c").exit_status == 137
    assert pod.events.names() == ["TaskCreate", "TaskExit", "TaskDelete"]


def test_whoever_hears_of_an_end_comes_after_its_event(pod: Pod) -> None:
    """A Delete does, on another thread: the event that it sends must not overtake it."""
    container = pod.create("c", "true")
    heard: list[tuple[list[str], int]] = []
    container.init.when_ended(lambda _: heard.append((pod.events.names(), container.state.status)))
    pod.start("c")
    pod.wait("c").get()
    assert heard == [(["TaskCreate", "TaskStart", "TaskExit"], STOPPED)]
    pod.delete("c")


def test_delete_of_a_running_container_is_refused(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    pod.start("c")
    with pytest.raises(FailedPrecondition, match="cannot delete container c: it is running"):
        pod.delete("c")
    assert pod.state("c").status == RUNNING


def test_a_second_delete_says_not_found(pod: Pod) -> None:
    """CRI gives up after ten seconds and asks again, while the first still waits for output."""
    container = pod.create("c", "true")
    pod.start("c")
    pod.wait("c").get()
    pod.delete("c")
    pod.service.containers["c"] = container  # the second had found it before the first was done
    with pytest.raises(NotFound, match="container c not created"):
        pod.delete("c")


def test_kill_after_the_end(pod: Pod) -> None:
    pod.create("c", "true")
    pod.start("c")
    pod.wait("c").get()
    with pytest.raises(NotFound, match="container c is not running"):
        pod.kill("c")


def test_kill_goes_through_runc(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    pod.start("c")
    pod.kill("c", signal.SIGTERM, everyone=True)
    assert pod.wait("c").get().exit_status == 143
    assert pod.calls()[-1] == ["kill", "--all", "c", "15"]


def test_pause_and_resume(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    pod.start("c")
    gate = pod.gate("pause")

    container = pod.service.containers["c"]
    pausing = Behind(container.pause)
    pod.node.until(lambda: container.state.status == PAUSING)
    open_gate(gate)
    pausing.get()
    assert pod.state("c").status == PAUSED
    container.resume()
    assert pod.state("c").status == RUNNING
    assert pod.events.names()[2:] == ["TaskPaused", "TaskResumed"]


def test_an_end_during_a_pause_is_final(pod: Pod) -> None:
    container = pod.create("c", *FOREVER)
    pod.start("c")
    gate = pod.gate("pause")
    pausing = Behind(container.pause)
    pod.node.until(lambda: container.state.status == PAUSING)
    pod.kill("c")
    assert pod.wait("c").get().exit_status == 137
    open_gate(gate)
    pausing.get()
    assert pod.state("c").status == STOPPED


def test_a_pause_that_fails(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    pod.start("c")
    pod.fail("pause", "cannot freeze")
    with pytest.raises(RuntimeFailed, match="cannot freeze"):
        pod.service.containers["c"].pause()
    assert pod.state("c").status == RUNNING
    assert pod.events.of(pb.TaskPaused) == []


def test_an_exit_while_paused_thaws_the_rest(pod: Pod) -> None:
    container = pod.create("c", *FOREVER)
    pod.start("c")
    container.pause()
    os.kill(container.init.pid, signal.SIGKILL)
    assert pod.wait("c").get().exit_status == 137
    pod.node.until(lambda: "resume" in pod.verbs())
    assert pod.state("c").status == STOPPED


def test_init_of_a_shared_pid_namespace_takes_the_others_along(pod: Pod) -> None:
    spec = {"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}}
    container = pod.create("c", *FOREVER, spec=spec)
    assert container.shares_pids
    pod.start("c")
    os.kill(container.init.pid, signal.SIGKILL)
    pod.wait("c").get()
    pod.node.until(lambda: ["kill", "--all", "c", "9"] in pod.calls())


def test_update_hands_over_a_file_of_ours(pod: Pod) -> None:
    container = pod.create("c", *FOREVER)
    container.update(b'{"pids": {"limit": 7}}')
    assert (pod.folder / "runc/resources").read_text() == '{"pids": {"limit": 7}}'
    assert not os.path.exists(f"{container.folder}/resources.json")


def test_oom_is_looked_for_before_the_exit_is_told(pod: Pod) -> None:
    pod.create("c", "true")
    pod.start("c")
    pod.wait("c").get()
    assert ("check", "c") in pod.node.oom.calls
    pod.delete("c")
    assert pod.node.oom.calls[-1] == ("remove", "c")


def test_output_is_waited_for_by_delete(pod: Pod) -> None:
    os.mkfifo(pod.folder / "out")
    reader = os.open(pod.folder / "out", os.O_RDONLY | os.O_NONBLOCK)
    pod.create("c", "sh", "-c", "echo all of it", stdout=str(pod.folder / "out"))
    pod.start("c")
    pod.wait("c").get()
    pod.delete("c")
    assert os.read(reader, 99) == b"all of it\n"
    assert os.read(reader, 99) == b"", "and its end"
    os.close(reader)


def test_a_terminal(pod: Pod) -> None:
    os.mkfifo(pod.folder / "out")
    reader = os.open(pod.folder / "out", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    script = "stty size; exit 4"
    container = pod.create(
        "c", "sh", "-c", script, stdout=str(pod.folder / "out"), stderr="x", terminal=True
    )
    assert pod.state("c").terminal
    assert pod.state("c").stderr == ""
    container.init.resize(100, 30)
    pod.start("c")
    assert pod.wait("c").get().exit_status == 4
    with open(reader, "rb") as output:
        assert output.readline() == b"30 100\r\n"  # it may come in two pieces
        pod.delete("c")
    assert not list((pod.folder / "state").glob("pty-*"))


def test_folders_of_ours_go_with_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "gone/inner").mkdir(parents=True)
    (tmp_path / "gone/inner/file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "gone/link").symlink_to(tmp_path / "kept")
    remove_folder(str(tmp_path / "gone"))
    remove_folder(str(tmp_path / "gone"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept/file").exists(), "links are not followed"
