"""What is told, in which order, and how often: exits above all."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane
from bed.pod import Mount, linux_config
from drive.client import followed_events, topics_until
from drive.session import KILL, Session
from drive.shim import SECONDS, await_true
from workers import alive, init_pid, wait_until

from shim.errors import ThawError
from shim.proto import task_pb as pb

TIMES = [pytest.param(3, id="few"), pytest.param(50, id="many", marks=pytest.mark.soak)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("times", TIMES)
def test_inits_exit_is_the_last(session: Session, times: int) -> None:
    """Short execs that race the end of init (containerd#10589)."""
    for number in range(times):
        name = f"c{number}"
        session.run(name, "sleep", "0.2")
        with ThreadPoolExecutor(4) as threads:
            for n in range(12):
                threads.submit(raced_exec, session, name, f"x{n}")
        session.wait(name)
        session.delete(name)
        session.sink.wait_for_line(f"delete {name} ")
        check_order(session.sink.events(), name)


def raced_exec(session: Session, name: str, exec_id: str) -> None:
    """An exec that may come too late."""
    spec = session.process_spec("true")
    request = pb.ExecProcessRequest(id=name, exec_id=exec_id, spec=spec)
    seconds = SECONDS
    try:
        session.shim.call("Exec", request, pb.StateResponse)
        started = pb.StartRequest(id=name, exec_id=exec_id)
        session.shim.call("Start", started, pb.StartResponse)
    except ThawError:
        seconds = 0.5  # one that was never started is waited for in vain, as with containerd's own
    try:
        waiting = pb.WaitRequest(id=name, exec_id=exec_id)
        session.shim.call("Wait", waiting, pb.WaitResponse, seconds)
    except ThawError:
        pass


def check_order(lines: list[str], name: str) -> None:
    """Each process's events in order; one exit for each that started; init's exit the last."""
    own = [line.split() for line in lines if line.split()[1].partition("/")[0] == name]
    topics: dict[str, list[str]] = {}
    for topic, who, *_ in own:
        topics.setdefault(who.partition("/")[2], []).append(topic)
    assert topics.pop("") == ["create", "start", "exit", "delete"]
    for events in topics.values():
        assert events in (["exec-added", "exec-started", "exit"], ["exec-added"]), topics
    ends = [who for topic, who, *_ in own if topic == "exit"]
    assert ends[-1] == name
    assert max(Counter(ends).values()) == 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("times", TIMES)
def test_programs_that_end_at_once(session: Session, times: int) -> None:
    for number in range(times):
        names = [f"c{number}-{n}" for n in range(4)]
        for name in names:
            session.bundle(name, "true")
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(session.run, names))
            list(threads.map(session.wait, names))
            list(threads.map(session.delete, names))
        for name in names:
            session.sink.wait_for_line(f"delete {name} 0")
            check_order(session.sink.events(), name)


def test_a_created_container_that_is_deleted_has_its_exit_first(session: Session) -> None:
    """containerd's own shim tells these two in either order."""
    session.create("a", "sleep", "1000")
    session.delete("a")
    session.sink.wait_for_line("delete a")
    assert session.sink.events() == ["create a", "exit a 137", "delete a 137"]


def test_every_event_has_its_time_and_place(session: Session) -> None:
    session.run("a", "sleep", "1000")
    session.kill("a", KILL)
    session.wait("a")
    session.delete("a")
    session.sink.wait_for_line("delete a")
    envelopes = session.sink.envelopes()
    assert {envelope.namespace for envelope in envelopes} == {"driven"}
    times = [e.timestamp.seconds * 10**9 + e.timestamp.nanos for e in envelopes if e.timestamp]
    assert len(times) == len(envelopes)
    assert times == sorted(times)
    assert times[0] > 10**18


def test_what_ctr_hears(lane: Lane) -> None:
    """What it hears of containerd's own shim too; that one now and then loses its last event."""
    with followed_events(lane) as events:
        words = ["run", "--detach", *lane.runtime_arguments(), BUSYBOX_IMAGE, "heard"]
        lane.ctr(*words, "sleep", "1000")
        lane.ctr("tasks", "exec", "--exec-id", "x", "heard", "true")
        lane.ctr("tasks", "pause", "heard")
        lane.ctr("tasks", "resume", "heard")
        lane.ctr("tasks", "delete", "--force", "heard")
        lane.ctr("containers", "delete", "heard")
        assert topics_until(events, "heard", "delete") == [
            *("create", "start", "exec-added", "exec-started", "exit"),
            *("paused", "resumed", "exit", "delete"),
        ]


def test_out_of_memory(lane: Lane) -> None:
    """It is told before the exit, as it must be; containerd's own shim tells these in any order."""
    with followed_events(lane, namespace="k8s.io") as events, lane.pod("oom") as pod:
        eat = ["sh", "-c", "tail /dev/zero"]
        limits = linux_config(memory_limit_in_bytes=24 << 20)
        container = pod.container("app", BUSYBOX_IMAGE, eat, linux=limits).start()
        container.wait()
        topics = topics_until(events, container.id, "delete")
        assert "oom" in topics[: topics.index("exit")]
        # Each of the two hears of it by itself.
        wait_until(lambda: container.status().reason == "OOMKilled", "containerd's word for it")


def test_an_end_while_containerd_is_down(private_lane: Lane, tmp_path: Path) -> None:
    """It is heard of afterwards, as with containerd's own shim (2.x knows no status then: 255)."""
    script = "until test -e /data/go; do sleep 0.02; done; touch /data/gone-$NAME; exit 5"
    mount = Mount(tmp_path, "/data", readonly=False)
    pods = {name: private_lane.run_pod(name, handler=name) for name in ("runc", "thaw")}
    containers = {
        name: pod.container(
            "app", BUSYBOX_IMAGE, ["sh", "-c", script], mounts=[mount], env={"NAME": name}
        ).start()
        for name, pod in pods.items()
    }
    pids = [init_pid(private_lane, container.id) for container in containers.values()]
    private_lane.stop()
    (tmp_path / "go").touch()
    for name in pods:
        assert await_true((tmp_path / f"gone-{name}").exists)
    assert await_true(lambda: not any(map(alive, pids)))
    private_lane.start()
    ends = {name: container.wait() for name, container in containers.items()}
    assert ends["thaw"] == ends["runc"]
    for pod in pods.values():
        pod.remove()
