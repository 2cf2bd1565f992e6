"""Added processes, by way of the Task service."""

from __future__ import annotations

import json
import os
import signal

import pytest
from fakes.host import open_fds
from fakes.pod import Pod

from shim.errors import AlreadyExists, FailedPrecondition, NotFound, RuntimeFailed
from shim.proto import events_pb as pb
from shim.task.state import CREATED, PAUSED, RUNNING, STOPPED

FOREVER = ("sleep", "1000")


@pytest.fixture
def running(pod: Pod) -> Pod:
    """A pod with a running container `c`."""
    pod.create("c", *FOREVER)
    pod.start("c")
    return pod


def test_from_exec_to_delete(running: Pod) -> None:
    running.exec("c", "e", "sh", "-c", "exit 5")
    assert running.state("c", "e").status == CREATED
    waiting = running.wait("c", "e")
    pid = running.start("c", "e")
    assert waiting.get().exit_status == 5
    assert running.state("c", "e").status == STOPPED
    assert running.state("c", "e").id == "e"
    deleted = running.delete("c", "e")
    assert (deleted.pid, deleted.exit_status) == (pid, 5)
    running.events.wait_for(pb.TaskExit)
    assert running.events.names()[2:] == ["TaskExecAdded", "TaskExecStarted", "TaskExit"]
    assert running.events.of(pb.TaskExit)[0].id == "e"
    with pytest.raises(NotFound, match="exec e not found in container c"):
        running.state("c", "e")
    assert running.state("c").status == RUNNING
    left = sorted(path.name for path in (running.folder / "bundles/c").iterdir())
    assert not [name for name in left if name.startswith("e.")]


def test_an_id_is_taken_once(running: Pod) -> None:
    running.exec("c", "e", "true")
    with pytest.raises(AlreadyExists, match="exec e exists in container c"):
        running.exec("c", "e", "true")


def test_signals_go_by_pid(running: Pod) -> None:
    running.exec("c", "e", *FOREVER)
    with pytest.raises(FailedPrecondition, match="exec e is not started"):
        running.kill("c", exec_id="e")
    running.start("c", "e")
    with pytest.raises(FailedPrecondition, match="cannot delete exec e: it is running"):
        running.delete("c", "e")
    with pytest.raises(FailedPrecondition, match="started already"):
        running.start("c", "e")
    running.kill("c", signal.SIGTERM, "e")
    assert running.wait("c", "e").get().exit_status == 143
    with pytest.raises(NotFound, match="exec e has ended"):
        running.kill("c", exec_id="e")


def test_an_unknown_one(running: Pod) -> None:
    for verb in (running.start, running.delete, running.state, running.wait):
        with pytest.raises(NotFound, match="exec x not found"):
            verb("c", "x")


def test_a_refused_start_leaves_it_created_and_answers_wait(running: Pod) -> None:
    """containerd's TestIssue10589: whoever waits must not wait for ever."""
    before = open_fds()
    os.mkfifo(running.folder / "out")
    running.exec("c", "e", "/no/such/binary", stdout=str(running.folder / "out"))
    waiting = running.wait("c", "e")
    with pytest.raises(RuntimeFailed, match="executable file not found"):
        running.start("c", "e")
    assert waiting.get().exit_status != 0
    assert running.wait("c", "e").get().exit_status != 0
    assert running.state("c", "e").status == CREATED
    assert running.events.of(pb.TaskExit) == []
    assert running.events.of(pb.TaskExecStarted) == []
    running.delete("c", "e")
    running.node.do(lambda: None)
    assert open_fds(before) == set()
    running.kill("c")
    assert running.wait("c").get().exit_status == 137, "it holds up nothing"


def test_none_is_started_once_init_has_ended(running: Pod) -> None:
    container = running.service.containers["c"]
    running.exec("c", "e", *FOREVER)
    running.kill("c")
    running.wait("c").get()
    with pytest.raises(FailedPrecondition, match="init of container c is not running"):
        running.start("c", "e")
    with pytest.raises(FailedPrecondition, match="cannot exec in container c: it is stopped"):
        running.exec("c", "f", *FOREVER)
    assert list(container.execs) == ["e"]


def test_none_is_added_while_paused_and_all_inherit_it(running: Pod) -> None:
    running.exec("c", "e", *FOREVER)
    running.start("c", "e")
    running.exec("c", "done", "true")
    running.start("c", "done")
    running.wait("c", "done").get()
    running.service.containers["c"].pause()
    assert running.state("c", "e").status == PAUSED
    assert running.state("c", "done").status == STOPPED
    with pytest.raises(FailedPrecondition, match="it is paused"):
        running.exec("c", "f", "true")
    running.service.containers["c"].resume()
    assert running.state("c", "e").status == RUNNING


def test_one_in_a_container_that_is_only_created(pod: Pod) -> None:
    pod.create("c", *FOREVER)
    pod.exec("c", "e", *FOREVER)
    pod.start("c", "e")
    assert pod.state("c", "e").status == RUNNING
    assert pod.state("c").status == CREATED


def test_one_that_outlives_init_still_runs(running: Pod) -> None:
    running.exec("c", "e", *FOREVER)
    running.start("c", "e")
    running.kill("c")
    container = running.service.containers["c"]
    running.node.until(lambda: container.exits.init_end is not None)
    assert running.state("c", "e").status == RUNNING
    running.kill("c", exec_id="e")
    assert running.wait("c").get().exit_status == 137


def test_its_streams_and_the_spec(running: Pod) -> None:
    os.mkfifo(running.folder / "in")
    os.mkfifo(running.folder / "out")
    reader = os.open(running.folder / "out", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    names = {"stdin": str(running.folder / "in"), "stdout": str(running.folder / "out")}
    running.exec("c", "e", "cat", **names)
    assert running.state("c", "e").stdin == names["stdin"]
    running.start("c", "e")
    with open(running.folder / "in", "w") as client:
        client.write("there and back")
        client.flush()
        assert os.read(reader, 99) == b"there and back"
        running.service.containers["c"].exec("e").close_stdin()
    assert running.wait("c", "e").get().exit_status == 0
    running.delete("c", "e")
    os.close(reader)


def test_a_terminal(running: Pod) -> None:
    os.mkfifo(running.folder / "out")
    reader = os.open(running.folder / "out", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    running.exec("c", "e", "tty", stdout=str(running.folder / "out"), terminal=True)
    running.start("c", "e")
    assert os.read(reader, 99).startswith(b"/dev/pts/")
    assert running.wait("c", "e").get().exit_status == 0
    running.delete("c", "e")
    os.close(reader)


def test_what_runc_is_given(running: Pod) -> None:
    running.exec("c", "e", "true")
    running.start("c", "e")
    (call,) = [call for call in running.calls() if call[0] == "exec"]
    bundle = running.folder / "bundles/c"
    assert call == [
        *("exec", "--process", f"{bundle}/e.exec.json", "--detach"),
        *("--pid-file", f"{bundle}/e.pid", "c"),
    ]
    assert json.loads(running.service.containers["c"].exec("e").spec) == {"args": ["true"]}
