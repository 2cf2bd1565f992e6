"""`checkpoint.verify`: a snapshot is restored once, beside its original, before it is published."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from bed.fetch import criu
from bed.images import HOST_IMAGE
from bed.lane import CRI_NAMESPACE, Lane
from bed.pod import Container, Mount, Pod
from gate import configured, gate
from stored import exists, ids, path_of
from workers import (
    USR,
    Line,
    alive,
    children,
    init_pid,
    script,
    shim_lines,
    shim_pid,
    wait_until,
)

pytestmark = [pytest.mark.one_lane, pytest.mark.timeout(300)]

VERIFY = '[checkpoint]\nverify = "restore"\n[restore]\ndeadline = 90.0\n'

# Wherever it runs it leaves the number of its network namespace: one of its own says that it is not
# the original. What it has open in its volumes stays as long as it is.
WORKER = """\
import mmap, os, time
shared = open("/dev/shm/kept", "w+b")
shared.truncate(4096)
page = mmap.mmap(shared.fileno(), 4096)
page[:4] = b"kept"
{more}
def tell():
    who = os.readlink("/proc/self/ns/net")
    open("/data/" + who, "a").close()
    with open("/single", "r+") as single:
        single.write(who)
tell()
print("booted", flush=True)
while page[:4] == b"kept":
    tell()
    time.sleep(0.001)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder and the file that a container gets to write to."""
    (tmp_path / "data").mkdir()
    (tmp_path / "single").write_text("")
    return tmp_path


@pytest.fixture
def pod(lane: Lane) -> Iterator[Pod]:
    with configured(lane, criu(), VERIFY), lane.pod("verify") as pod:
        yield pod


def booted(pod: Pod, place: Path, more: str = "", *mounts: Mount) -> Container:
    args = script(WORKER.format(more=more))
    mine = [Mount(place / "data", "/data", False), Mount(place / "single", "/single", False)]
    container = pod.container("app", HOST_IMAGE, args, mounts=[USR, *mine, *mounts]).start()
    container.wait_for_log("booted")
    return container


def thaw_checkpoint(
    lane: Lane, container: Container, name: str, *more: str
) -> CompletedProcess[str]:
    words = ("checkpoint", container.id, name, "--namespace", CRI_NAMESPACE, *more)
    return lane.thaw(*words, check=False)


def verified(lane: Lane, name: str) -> str:
    config = json.loads((path_of(lane, name) / "config.json").read_text())
    return str(config["verified"])


def verdicts(lane: Lane, container: Container) -> list[Line]:
    """What the log says of trials so far: it goes by way of containerd, and comes later."""
    return [line for line in shim_lines(lane, container.id) if "verified" in line.message]


def ensure_alone(container: Container, lane: Lane, place: Path) -> None:
    """It runs on, and nobody else has written to what it shares with the node."""
    pid = init_pid(lane, container.id)
    assert alive(pid)
    own = os.readlink(f"/proc/{pid}/ns/net")
    assert {path.name for path in (place / "data").iterdir()} - {"log"} == {own}
    assert (place / "single").read_text() == own


def test_what_can_be_restored_is_published(lane: Lane, pod: Pod, place: Path) -> None:
    container = booted(pod, place)
    done = thaw_checkpoint(lane, container, "good")
    assert done.returncode == 0, done.stderr
    assert verified(lane, "good") == "restored"
    assert "restored beside its original" in lane.thaw("show", "good").stdout
    ensure_alone(container, lane, place)
    container.checkpoint(place / "for-the-kubelet.tar")
    ensure_alone(container, lane, place)
    wait_until(lambda: len(verdicts(lane, container)) > 1, "two trials in the log")
    assert [line.message for line in verdicts(lane, container)] == ["snapshot verified"] * 2


def test_what_ends_at_its_dump_is_tried_before_it_ends(lane: Lane, pod: Pod, place: Path) -> None:
    container = booted(pod, place)
    own = os.readlink(f"/proc/{init_pid(lane, container.id)}/ns/net")
    done = thaw_checkpoint(lane, container, "last", "--exit")
    assert done.returncode == 0, done.stderr
    assert verified(lane, "last") == "restored"
    assert container.wait() == 137
    assert [path.name for path in (place / "data").iterdir()] == [own]


def test_what_cannot_be_restored_is_not_published(lane: Lane, place: Path) -> None:
    """It has a file open that is longer by then, which CRIU does not take for the same."""
    with gate(lane, "post-dump", VERIFY) as held, lane.pod("grows") as pod:
        container = booted(pod, place, 'log = open("/data/log", "w")')
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(thaw_checkpoint, lane, container, "bad")
            held.wait()
            (place / "data/log").write_text("more\n")
            held.open()
            done = asked.result(90)
        assert done.returncode != 0
        assert "the snapshot cannot be restored, and is not published" in done.stderr
        assert "bad size" in done.stderr
        assert not ids(lane)
        assert not exists(lane, "bad")
        ensure_alone(container, lane, place)


def test_what_cannot_be_tried_says_why(lane: Lane, pod: Pod, place: Path) -> None:
    with (place / "large").open("wb") as file:
        file.truncate(1 << 30)
    container = booted(pod, place, "", Mount(place / "large", "/large", False))
    done = thaw_checkpoint(lane, container, "untried")
    assert done.returncode == 0, done.stderr
    why = "not restored: the file at /large is too large to be copied"
    assert verified(lane, "untried") == why
    assert why in lane.thaw("show", "untried").stdout
    assert why in lane.places.audit.read_text()
    wait_until(lambda: verdicts(lane, container), "the trial in the log")
    (line,) = verdicts(lane, container)
    assert line.message == "snapshot not verified"
    assert line.fields["because"] == why
    ensure_alone(container, lane, place)


@pytest.mark.parametrize("what", ["kill its engine", "end its container"])
def test_nothing_is_left_of_one_that_is_broken_off(lane: Lane, place: Path, what: str) -> None:
    with gate(lane, "post-restore", VERIFY) as held, lane.pod("broken") as pod:
        container = booted(pod, place)
        with ThreadPoolExecutor() as pool:
            done = pool.submit(thaw_checkpoint, lane, container, "broken")
            held.wait(90)
            if what == "kill its engine":
                (engine,) = children(shim_pid(lane, container.id), "engine.py")
                os.kill(engine, signal.SIGKILL)
                held.open()  # CRIU finds nobody whom it could ask whether to go on
                assert "the engine process died" in done.result(90).stderr
                ensure_alone(container, lane, place)
            else:
                container.stop(timeout=5)  # it ignores SIGTERM
                container.remove()
                assert done.result(90).returncode == 0, "whoever has asked for it gets it"
                assert verified(lane, "broken") == "not restored: its container ended meanwhile"
    trial = lane.places.thaw_state / CRI_NAMESPACE / f".verify-{container.id}"
    assert not trial.exists()
    assert exists(lane, "broken") == (what == "end its container")
    lane.thaw("gc")  # the draft of an engine that was killed goes with the next one, or so
