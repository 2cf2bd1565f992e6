"""`auto`: the first of equal containers boots cold and is snapshotted once it is warm; the others
come from that."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane
from bed.pod import Container, Pod
from stored import ids
from workers import (
    FAIL,
    SNAPSHOT,
    WORKER,
    Told,
    ask,
    booted_cold,
    children,
    host_python,
    outcome,
    shim_lines,
    shim_pid,
    wait_until,
)

pytestmark = [pytest.mark.one_lane]

POLLING = Path(__file__).parents[2] / "runtimeclass/example/polling.py"
# Warm once somebody says so.
ARGS = ["sh", "-c", WORKER]
AUTO = {SNAPSHOT: "auto", "thaw.dev/ready": "file:/tmp/warm"}


def started(pod: Pod, **env: str) -> Container:
    return pod.container("app", BUSYBOX_IMAGE, ARGS, env=env).start()


def cold(pod: Pod, **env: str) -> Told:
    container = started(pod, **env)
    container.wait_for_log("booted")
    return ask(container)


def say_warm(container: Container) -> None:
    assert container.exec(["touch", "/tmp/warm"]).exit_code == 0


def messages(lane: Lane, container: Container) -> list[str]:
    return [line.message for line in shim_lines(lane, container.id)]


def snapshotted(lane: Lane, container: Container) -> None:
    say_warm(container)
    wait_until(lambda: "snapshot made" in messages(lane, container), "a snapshot")


@pytest.fixture
def warmed(lane: Lane) -> Iterator[Told]:
    """What the first one of its kind says; its snapshot is there."""
    with lane.pod("first", annotations=AUTO) as pod:
        container = started(pod, MODEL="a", TOKEN="hush")
        container.wait_for_log("booted")
        told = ask(container)
        snapshotted(lane, container)
        assert ask(container) == (told.token, told.asked + 1), "it runs on"
        yield told


@pytest.mark.usefixtures("warmed")
def test_the_next_ones_come_from_it(lane: Lane, warmed: Told) -> None:
    for name in ("second", "third"):
        with lane.pod(name, annotations={**AUTO, **FAIL}) as pod:
            container = started(pod, MODEL="a", TOKEN="hush")
            assert outcome(lane, container).message == "restored"
            assert ask(container) == (warmed.token, warmed.asked + 1)
            assert not booted_cold(container)
    assert len(ids(lane)) == 1
    assert "hush" not in lane.thaw("ls").stdout


@pytest.mark.usefixtures("warmed")
def test_another_environment_is_another_worker(lane: Lane) -> None:
    with lane.pod("other", annotations=AUTO) as pod:
        container = started(pod, MODEL="b", TOKEN="hush")
        container.wait_for_log("booted")
        snapshotted(lane, container)
    assert len(ids(lane)) == 2


def test_of_two_at_a_time_one_makes_it(lane: Lane) -> None:
    with lane.pod("one", annotations=AUTO) as one, lane.pod("two", annotations=AUTO) as two:
        containers = [started(pod) for pod in (one, two)]
        for container in containers:
            container.wait_for_log("booted")
        for container in containers:
            say_warm(container)
        for message in ("snapshot made", "no snapshot made"):
            wait_until(
                lambda: any(message in messages(lane, one) for one in containers),  # noqa: B023
                message,
            )
    assert len(ids(lane)) == 1


def test_a_worker_of_the_contract_needs_no_probe(lane: Lane) -> None:
    """It says by itself when it is warm, and is told each time that it can go on."""
    polling = POLLING.read_text()
    with lane.pod("polling", annotations={SNAPSHOT: "auto"}) as pod:
        container = host_python(pod, polling).start()
        wait_until(lambda: "snapshot made" in messages(lane, container), "a snapshot")
        container.wait_for_log("registered")
    with lane.pod("polling-again", annotations={SNAPSHOT: "auto", **FAIL}) as pod:
        container = host_python(pod, polling).start()
        assert outcome(lane, container).message == "restored"
        container.wait_for_log("registered")
        assert "warm" not in container.log()


def test_it_never_gets_warm(lane: Lane) -> None:
    with lane.pod("never", annotations=AUTO) as pod:
        container = started(pod)
        container.wait_for_log("booted")
    assert ids(lane) == set()


def test_the_engine_that_waits_is_killed(lane: Lane) -> None:
    """The worker does not care, and the lease does not stay for ever."""
    with lane.pod("killed", annotations=AUTO) as pod:
        container = started(pod)
        container.wait_for_log("booted")
        shim = shim_pid(lane, container.id)
        wait_until(lambda: children(shim, "shim/engine.py"), "an engine")
        wait_until(lambda: list(lane.places.snapshots.glob("leases/*")), "a lease")
        os.kill(children(shim, "shim/engine.py")[0], signal.SIGKILL)
        wait_until(
            lambda: "could not make a snapshot" in messages(lane, container), "a line in the log"
        )
        assert ask(container)
    for lease in lane.places.snapshots.glob("leases/*"):
        os.utime(lease, (time.time() - 60,) * 2)  # as after a minute
    with lane.pod("again", annotations=AUTO) as pod:
        container = started(pod)
        container.wait_for_log("booted")
        snapshotted(lane, container)
    assert list(lane.places.snapshots.glob("leases/*")) == []
    assert len(ids(lane)) == 1
