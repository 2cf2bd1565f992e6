"""Snapshots that a pod asks to be made of itself: what is done to its worker before and after them,
and how a worker of the contract learns what has become of it."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane
from bed.pod import Container, Pod
from stored import exists, ids, path_of
from workers import (
    COMMAND,
    FAIL,
    SNAPSHOT,
    Line,
    ask,
    booted_cold,
    checkpoint,
    children,
    host_python,
    outcome,
    shim_lines,
    shim_pid,
    task_state,
    wait_until,
)

pytestmark = [pytest.mark.one_lane]

EXAMPLES = Path(__file__).parents[2] / "runtimeclass/example"
SLEEPING = (EXAMPLES / "sleeping.py").read_text()
POLLING = (EXAMPLES / "polling.py").read_text()


def said(lane: Lane, container: Container, message: str) -> Line:
    """The shim's line of that beginning about a container, once it is there."""
    found: list[Line] = []

    def there() -> bool:
        lines = shim_lines(lane, container.id)
        found[:] = [line for line in lines if line.message.startswith(message)]
        return bool(found)

    wait_until(there, f"a line {message!r}")
    return found[0]


def is_sleeping(pod: Pod) -> bool:
    with urllib.request.urlopen(f"http://{pod.ip}:8000/is_sleeping", timeout=10) as answer:
        return bool(json.load(answer)["is_sleeping"])


# -- a server that knows nothing -------------------------------------------------------------------


def test_it_sleeps_in_its_snapshot_and_is_awake_again(lane: Lane) -> None:
    notes = {
        "thaw.dev/checkpoint": "asleep",
        "thaw.dev/ready": "http:8000/health",
        "thaw.dev/quiesce": "http:8000/sleep?level=1",
        "thaw.dev/resume": "http:8000/wake_up",
    }
    with lane.pod("asleep", annotations=notes) as pod:
        container = host_python(pod, SLEEPING).start()
        line = said(lane, container, "snapshot made")
        assert line.fields["snapshot"] == "asleep"
        assert float(line.fields["quiet"]) > float(line.fields["frozen"]) > 0
        assert not is_sleeping(pod)
    config = json.loads((path_of(lane, "asleep") / "config.json").read_text())
    assert {"quiesce", "dump", "resume"} <= {span["name"] for span in config["spans"]}
    assert config["maker"]["by"] == "annotation"
    with lane.pod("asleep-back", annotations={SNAPSHOT: "asleep", **FAIL}) as pod:
        container = host_python(pod, SLEEPING).start()
        assert outcome(lane, container).message == "restored"
        assert is_sleeping(pod), "nobody has woken this one"


# Whoever sees the file that it makes knows that it does nothing more.
ASLEEP = "rm -f /tmp/awake; touch /tmp/asleep"
AWAKE = "exec:rm -f /tmp/asleep; touch /tmp/awake"


@pytest.fixture(scope="module")
def obstinate(lane: Lane) -> Iterator[Pod]:
    """A pod whose containers go to sleep each in its own way."""
    notes = {
        "thaw.dev/ready": "exec:pidof sleep",  # the worker handles signals since before it has that
        "thaw.dev/checkpoint.fails": "fails",
        "thaw.dev/quiesce.fails": f"exec:{ASLEEP}; echo I will not >&2; false",
        "thaw.dev/checkpoint.hangs": "hangs",
        "thaw.dev/quiesce.hangs": f"exec:{ASLEEP}; sleep 4711",
        "thaw.dev/quiesce-timeout.hangs": "0.5",
        "thaw.dev/checkpoint.forsaken": "forsaken",
        "thaw.dev/quiesce.forsaken": f"exec:{ASLEEP}; sleep 100000",
        "thaw.dev/checkpoint.sleeps-on": "sleeps-on",
        "thaw.dev/resume.sleeps-on": "exec:echo let me be >&2; exit 5",
        "thaw.dev/checkpoint.ends": "ends",
        "thaw.dev/after-checkpoint.ends": "exit",
        "thaw.dev/quiesce.ends": f"exec:{ASLEEP}",
        "thaw.dev/checkpoint.stopped": "stopped",
        "thaw.dev/quiesce.stopped": f"exec:{ASLEEP}; sleep 100000",
        "thaw.dev/quiesce-timeout.stopped": "3600",
        "thaw.dev/resume": AWAKE,
    }
    with lane.pod("obstinate", annotations=notes) as pod:
        yield pod


@contextmanager
def in_it(pod: Pod, name: str) -> Iterator[Container]:
    """That container of the pod; it is removed with the block."""
    container = pod.container(name, BUSYBOX_IMAGE, COMMAND).start()
    container.wait_for_log("booted")  # signals that come before are lost
    try:
        yield container
    finally:
        container.remove()


@pytest.mark.parametrize(
    ("name", "words"),
    [("fails", "exit status 1: I will not"), ("hangs", "not done after 0.5 s, killed")],
)
def test_it_cannot_be_quiesced(lane: Lane, obstinate: Pod, name: str, words: str) -> None:
    with in_it(obstinate, name) as container:
        line = said(lane, container, "could not make a snapshot")
        assert "no snapshot is made" in line.fields["error"]
        assert words in line.fields["error"]
        assert ids(lane) == set()
        assert files(container) == ["awake"]
        assert "sleep 4711" not in container.exec(["ps", "-o", "args"]).stdout
        assert ask(container).asked == 1, "it runs on"
        assert booted_cold(container)


def files(container: Container) -> list[str]:
    return container.exec(["ls", "/tmp"]).stdout.split()


def test_whoever_has_put_it_to_sleep_is_killed(lane: Lane, obstinate: Pod) -> None:
    """Somebody else wakes it."""
    with in_it(obstinate, "forsaken") as container:
        wait_until(lambda: files(container) == ["asleep"], "a worker that sleeps")
        engine = children(shim_pid(lane, container.id), "shim/engine.py")[0]
        os.kill(engine, signal.SIGKILL)
        assert "died" in said(lane, container, "could not make a snapshot").fields["error"]
        assert files(container) == ["awake"]
        assert ask(container).asked == 1
        assert ids(lane) == set()
    (lane.places.snapshots / "leases/forsaken").unlink()  # as after a minute
    lane.thaw("gc")  # its draft


def test_it_is_told_to_stop_before_it_is_dumped(lane: Lane, obstinate: Pod) -> None:
    """Those that come from it would end at once; and nothing waits for what puts it to sleep."""
    with in_it(obstinate, "stopped") as container:
        wait_until(lambda: files(container) == ["asleep"], "a worker that sleeps")
        shim = shim_pid(lane, container.id)
        container.stop(timeout=60)
        assert container.wait() == 7, "by SIGTERM, which it handles"
        wait_until(lambda: not children(shim, "shim/engine.py"), "the end of its engine")
        messages = [line.message for line in shim_lines(lane, container.id)]
        assert "snapshot made" not in messages
    lane.thaw("gc")  # its draft
    assert ids(lane) == set()
    assert not (lane.places.snapshots / "leases/stopped").exists()


def test_it_does_not_wake_up(lane: Lane, obstinate: Pod) -> None:
    with in_it(obstinate, "sleeps-on") as container:
        line = said(lane, container, "snapshot made, its worker not resumed")
        assert "exit status 5: let me be" in line.fields["error"]
        assert exists(lane, "sleeps-on")


def test_it_is_told_to_end(lane: Lane, obstinate: Pod) -> None:
    with in_it(obstinate, "ends") as container:
        assert container.wait() == 7, "by SIGTERM, which it handles"
        assert exists(lane, "ends")
        [difference] = path_of(lane, "ends").glob("rootfs.tar.*")
        assert b"tmp/asleep" in difference.read_bytes()


def test_it_is_registered_when_it_is_awake_again(lane: Lane) -> None:
    """Nobody sends work to one that sleeps, and what it has served is in no snapshot."""
    notes = {
        "thaw.dev/ready": "exec:true",
        "thaw.dev/checkpoint": "joined",
        "thaw.dev/quiesce": "exec:echo quiesced >>/tmp/order",
        "thaw.dev/resume": "exec:echo resumed >>/tmp/order",
        "thaw.dev/register": "exec:echo $1 >>/tmp/order",
    }
    with lane.pod("joined", annotations=notes) as pod:
        container = pod.container("app", BUSYBOX_IMAGE, COMMAND).start()
        said(lane, container, "registered")
        order = container.exec(["cat", "/tmp/order"]).stdout.split()
        assert order == ["quiesced", "resumed", "register"]
    [difference] = path_of(lane, "joined").glob("rootfs.tar.*")
    assert b"quiesced\n" in difference.read_bytes()
    assert b"register" not in difference.read_bytes()


# -- a worker of the contract ----------------------------------------------------------------------


def test_its_snapshot_was_all_that_was_wanted(lane: Lane) -> None:
    notes = {"thaw.dev/checkpoint": "polled", "thaw.dev/after-checkpoint": "exit"}
    with lane.pod("polled", annotations=notes) as pod:
        container = host_python(pod, POLLING).start()
        assert container.wait() == 0, container.log()
        assert "registered" not in container.log()
    assert exists(lane, "polled")


def test_it_goes_on_after_a_snapshot_by_hand(lane: Lane) -> None:
    with lane.pod("by-hand", annotations={"thaw.dev/ready": "contract"}) as pod:
        container = host_python(pod, POLLING).start()
        control = task_state(lane, container.id) / "control"
        wait_until((control / "ready-for-snapshot").exists, "a worker that waits")
        assert not (control / "restore-complete").exists()
        checkpoint(lane, container, "by-hand")
        container.wait_for_log("registered")
    config = json.loads((path_of(lane, "by-hand") / "config.json").read_text())
    assert "/snapshot-control" not in config["volumes"]


def test_it_goes_on_if_there_will_be_none(lane: Lane) -> None:
    """It would wait for ever."""
    with lane.pod("none", annotations={SNAPSHOT: "missing"}) as pod:
        container = host_python(pod, POLLING).start()
        assert outcome(lane, container).fields["reason"] == "NoSuchSnapshot"
        container.wait_for_log("registered")
