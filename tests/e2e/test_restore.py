"""A worker comes back from a snapshot: as itself, and as an ordinary container in every way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import grpc
import pytest
from bed.images import BUSYBOX_IMAGE, LAYERS, LAYERS_IMAGE
from bed.lane import CRI_NAMESPACE, Lane
from bed.pod import Container, Mount, Pod, linux_config
from stored import edit_config, path_of
from workers import (
    COMMAND,
    FAIL,
    SNAPSHOT,
    Told,
    ask,
    awaited_lines,
    boot,
    booted_cold,
    checkpoint,
    children,
    host_python,
    init_pid,
    kept_snapshot,
    memory_limit,
    outcome,
    shim_lines,
    wait_until,
)

# Echoes lines on two sockets, with the number of lines that it has seen since it booted.
ECHO = """\
import itertools, signal, socket, threading
count = itertools.count(1)
def talk(connection):
    with connection, connection.makefile("rw") as lines:
        for line in lines:
            print(next(count), line, end="", file=lines, flush=True)
def serve(listener):
    while True:
        threading.Thread(target=talk, args=listener.accept()[:1], daemon=True).start()
four = socket.create_server(("0.0.0.0", 8000))
six = socket.create_server(("::", 8001), family=socket.AF_INET6, dualstack_ipv6=True)
threading.Thread(target=serve, args=(four,), daemon=True).start()
threading.Thread(target=serve, args=(six,), daemon=True).start()
print("booted")
while True:
    signal.pause()
"""


@pytest.fixture(scope="module")
def worker(lane: Lane) -> Iterator[str]:
    """A snapshot of a worker that has been asked twice."""

    def make(pod: Pod) -> Container:
        container = boot(pod)
        assert ask(container).asked == 1
        assert ask(container).asked == 2
        return container

    with kept_snapshot(lane, "worker", make) as name:
        yield name


def restored(
    pod: Pod, name: str = "app", *, image: str = BUSYBOX_IMAGE, attempt: int = 0
) -> Container:
    return pod.container(name, image, COMMAND, attempt=attempt).start()


def wants(name: str, **more: str) -> dict[str, str]:
    return {SNAPSHOT: name, **FAIL, **more}


def test_the_restored_process_is_the_container(lane: Lane, worker: str) -> None:
    with lane.pod("back", annotations=wants(worker)) as pod:
        container = restored(pod)
        line = outcome(lane, container)
        assert (line.message, line.fields["snapshot"]) == ("restored", worker)
        assert ask(container).asked == 3
        assert not booted_cold(container)
        assert container.exec(["cat", "/proc/1/comm"]).stdout == "sh\n"
        assert container.exec(["sh", "-c", "echo yes; exit 5"])[:2] == (5, "yes\n")
        assert container.exec(["hostname"]).stdout == "back\n"
        assert container.stats().memory.working_set_bytes.value > 0
        container.stop()
        assert container.wait() == 7


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 7), (signal.SIGKILL, 137)])
def test_its_own_end_is_reported(lane: Lane, worker: str, how: signal.Signals, code: int) -> None:
    with lane.pod("end", annotations=wants(worker)) as pod:
        container = restored(pod)
        os.kill(init_pid(lane, container.id), how)
        assert container.wait() == code


def test_pause_resume_and_update(lane: Lane, worker: str) -> None:
    def state() -> str:
        rows = lane.ctr("tasks", "list", namespace=CRI_NAMESPACE).stdout.splitlines()
        return next(row.split()[2] for row in rows if row.startswith(container.id))

    with lane.pod("frozen", annotations=wants(worker)) as pod:
        container = restored(pod)
        lane.ctr("tasks", "pause", container.id, namespace=CRI_NAMESPACE)
        assert state() == "PAUSED"
        lane.ctr("tasks", "resume", container.id, namespace=CRI_NAMESPACE)
        assert state() == "RUNNING"
        container.update(memory_limit_in_bytes=64 << 20)
        assert memory_limit(init_pid(lane, container.id)) == 64 << 20
        assert ask(container).asked == 3


def test_two_restores_of_one_snapshot_live_side_by_side(lane: Lane, worker: str) -> None:
    with (
        lane.pod("one", annotations=wants(worker)) as first,
        lane.pod("two", annotations=wants(worker)) as second,
    ):
        one, two = restored(first), restored(second)
        assert first.ip != second.ip
        told = ask(one)
        assert ask(one) == Told(told.token, 4)
        assert ask(two) == Told(told.token, 3)
        one.stop()
        assert one.wait() == 7
        assert ask(two).asked == 4


def test_a_restored_worker_can_be_snapshotted_again(lane: Lane, worker: str) -> None:
    with lane.pod("again", annotations=wants(worker)) as pod:
        container = restored(pod)
        told = ask(container)
        checkpoint(lane, container, "again")
        assert ask(container) == Told(told.token, 4)
    with lane.pod("thrice", annotations=wants("again")) as pod:
        assert ask(restored(pod)) == Told(told.token, 4)


@contextmanager
def connected(pod: Pod, port: int) -> Iterator[TextIO]:
    with (
        socket.create_connection((pod.ip, port), 60) as connection,
        connection.makefile("rw") as lines,
    ):
        yield lines


def say(lines: TextIO, text: str) -> str:
    print(text, file=lines, flush=True)
    return str(lines.readline())


def test_listeners_answer_on_the_new_address(lane: Lane) -> None:
    """An open connection of the old pod's neither hinders this nor is it hurt by the dump.

    What becomes of other sockets: test_network.py.
    """
    with lane.pod("server") as old:
        server = host_python(old, ECHO).start()
        server.wait_for_log("booted")
        with connected(old, 8000) as lines:
            assert say(lines, "hello") == "1 hello\n"
            checkpoint(lane, server, "server")
            assert say(lines, "still there") == "2 still there\n"
        with lane.pod("moved", annotations=wants("server")) as new:
            assert new.ip != old.ip
            host_python(new, ECHO).start()
            for port, answer in ((8000, "2 hello\n"), (8001, "3 hello\n")):
                with connected(new, port) as lines:
                    assert say(lines, "hello") == answer


# Leaves a file in a folder of its pod's as soon as it runs; has none open once it has booted.
BUSY = ["sh", "-c", ": >/out/ran; echo booted; while :; do [ -e /out/ran ] || : >/out/ran; done"]


def test_what_is_refused_at_the_last_moment_has_never_run(lane: Lane, tmp_path: Path) -> None:
    """CRIU has made the process and all its mounts by then."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()

    def busy(pod: Pod, name: str) -> Container:
        out = Mount(tmp_path / name, "/out", readonly=False)
        return pod.container("app", BUSYBOX_IMAGE, BUSY, mounts=[out])

    with lane.pod("busy") as pod:
        container = busy(pod, "old").start()
        container.wait_for_log("booted")
        checkpoint(lane, container, "busy")
    edit_config(path_of(lane, "busy"), lambda config: config["mounts"].pop())
    with lane.pod("refused", annotations=wants("busy")) as pod:
        container = busy(pod, "new")
        with pytest.raises(grpc.RpcError, match=r"mounts differ: .* is mounted too"):
            container.start()
    assert (tmp_path / "old" / "ran").exists()
    assert os.listdir(tmp_path / "new") == []


def test_a_folder_that_is_mounted_twice(lane: Lane, tmp_path: Path) -> None:
    """CRIU binds the second to the first before that one is read-only."""
    mounts = [Mount(tmp_path, "/one"), Mount(tmp_path, "/two"), Mount(tmp_path, "/three", False)]

    def made(pod: Pod) -> Container:
        return pod.container("app", BUSYBOX_IMAGE, COMMAND, mounts=mounts).start()

    with lane.pod("cold") as pod:
        container = made(pod)
        container.wait_for_log("booted")
        checkpoint(lane, container, "twice")
    with lane.pod("twice", annotations=wants("twice")) as pod:
        container = made(pod)
        assert outcome(lane, container).message == "restored"
        for place, status in (("one", 1), ("two", 1), ("three", 0)):
            assert container.exec(["touch", f"/{place}/file"]).exit_code == status


def test_the_oom_score_is_the_new_pods(lane: Lane) -> None:
    """Which differs from node to node for one and the same pod."""
    with lane.pod("spared") as pod:
        spared = linux_config(oom_score_adj=900)
        container = pod.container("app", BUSYBOX_IMAGE, COMMAND, linux=spared).start()
        container.wait_for_log("booted")
        checkpoint(lane, container, "spared")
    with lane.pod("first-to-go", annotations=wants("spared")) as pod:
        init = init_pid(lane, restored(pod).id)
        for pid in (init, *children(init, "sleep")):
            assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


CLOCK = """\
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: print("clock", time.monotonic(), time.time(), flush=True))
print("booted", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.one_lane
def test_monotonic_time_goes_on_from_the_dump(lane: Lane) -> None:
    """CRIU makes a time namespace for it, so timers go on too, whatever the node's clock says."""

    def look(container: Container) -> tuple[float, float]:
        before = container.log().count("clock")
        container.exec(["/usr/bin/kill", "-USR1", "1"])
        wait_until(lambda: container.log().count("clock") > before, "the time")
        _, monotonic, wall = container.log().splitlines()[-1].split()
        return float(monotonic), float(wall)

    with lane.pod("clock") as pod:
        maker = host_python(pod, CLOCK).start()
        maker.wait_for_log("booted")
        checkpoint(lane, maker, "clock")
        then = look(maker)
    time.sleep(1)  # in the store
    with lane.pod("later", annotations=wants("clock")) as pod:
        container = host_python(pod, CLOCK).start()
        now = look(container)
        pid = init_pid(lane, container.id)
        assert os.readlink(f"/proc/{pid}/ns/time") != os.readlink("/proc/self/ns/time")
    assert now[1] - then[1] > 1, "the wall clock is the node's"
    assert now[0] - then[0] < now[1] - then[1] - 0.9


def test_a_container_of_another_name(lane: Lane, worker: str) -> None:
    """The key names the container, so that it does not matter what it was called."""
    with lane.pod("named", annotations={f"{SNAPSHOT}.other": worker, **FAIL}) as pod:
        assert ask(restored(pod, "other")).asked == 3


def test_only_the_container_of_that_name_is_restored(lane: Lane, worker: str) -> None:
    with lane.pod("pair", annotations=wants(worker)) as pod:
        side = boot(pod, "side")
        container = restored(pod)
        assert ask(container).asked == 3
        assert ask(side).asked == 1
        assert not [line for line in shim_lines(lane, side.id) if line.message == "not restored"]
        container.stop()
        assert ask(side).asked == 2


def test_a_container_that_crashed_is_restored_again_in_its_pod(lane: Lane, worker: str) -> None:
    with lane.pod("crash", annotations=wants(worker)) as pod:
        first = restored(pod)
        assert ask(first).asked == 3
        os.kill(init_pid(lane, first.id), signal.SIGKILL)
        assert first.wait() == 137
        second = restored(pod, attempt=1)
        assert ask(second).asked == 3
        assert not booted_cold(second)
        assert first.log().count("token ") == 1


def test_a_hundred_layers(lane: Lane) -> None:
    with lane.pod("layers") as pod:
        container = boot(pod, image=LAYERS_IMAGE)
        container.exec(["rm", "/layer-7"])
        checkpoint(lane, container, "layers")
    with lane.pod("layers-back", annotations=wants("layers")) as pod:
        container = restored(pod, image=LAYERS_IMAGE)
        assert ask(container).asked == 1
        listed = container.exec(["sh", "-c", "ls -d /layer-* | wc -l"]).stdout
        assert int(listed) == LAYERS - 2


# -- without the CRI ------------------------------------------------------------------------------


@pytest.fixture
def networks() -> Iterator[list[Path]]:
    """Two network namespaces with a path."""
    names = [f"thaw-{os.getpid()}-{n}" for n in range(2)]
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    yield [Path("/run/netns", name) for name in names]
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextmanager
def ctr_run(lane: Lane, name: str, *options: str) -> Iterator[Path]:
    """A container in the lane's own namespace; yields its log."""
    log = lane.places.folder / f"{name}.log"
    arguments = ["--detach", "--log-uri", f"file://{log}", *options, BUSYBOX_IMAGE, name, *COMMAND]
    lane.ctr("run", *lane.runtime_arguments(), *arguments)
    try:
        yield log
    finally:
        lane.ctr("tasks", "delete", "--force", name)
        lane.ctr("containers", "delete", name)
        log.unlink()


def test_ctr_run(lane: Lane, networks: list[Path]) -> None:
    one, two = (["--with-ns", f"network:{path}"] for path in networks)
    with ctr_run(lane, "plain", *one) as log:
        wait_until(lambda: "booted" in log.read_text(), "the worker")
        lane.thaw("checkpoint", "plain", "plain", "--namespace", lane.name)
    note = ["--annotation", f"{SNAPSHOT}=plain"]
    with ctr_run(lane, "annotated", *two, *note, "--annotation", f"{SNAPSHOT}x=ignored") as log:
        os.kill(init_pid(lane, "annotated", lane.name), signal.SIGUSR1)
        wait_until(lambda: "asked 1" in log.read_text(), "an answer")
        assert "booted" not in log.read_text()
    with ctr_run(lane, "hosted", "--net-host", *note) as log:
        wait_until(lambda: "booted" in log.read_text(), "the cold worker")
        [line] = awaited_lines(lane, "hosted", "booting cold")
        assert "hostNetwork" in line.fields["error"]
