"""Snapshots of running containers: what is in them, what they leave alone, and what a broken one
leaves behind."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from bed.images import BUSYBOX_IMAGE
from bed.lane import CRI_NAMESPACE, Lane
from bed.pod import Container, Pod
from gate import gate
from stored import exists, ids, path_of
from workers import (
    COMMAND,
    FAIL,
    SNAPSHOT,
    ask,
    boot,
    checkpoint,
    children,
    host_python,
    init_pid,
    python,
    shim_pid,
    wait_until,
)


@pytest.fixture(scope="module")
def running(lane: Lane) -> Iterator[Container]:
    """A worker that no snapshot of it shall hurt."""
    with lane.pod("running") as pod:
        yield boot(pod)


def thaw_checkpoint(lane: Lane, container: str, name: str) -> CompletedProcess[str]:
    return lane.thaw("checkpoint", container, name, "--namespace", CRI_NAMESPACE, check=False)


def test_the_container_runs_on(lane: Lane, running: Container) -> None:
    before, pid = ask(running), init_pid(lane, running.id)
    checkpoint(lane, running, "kept")
    assert ask(running) == (before.token, before.asked + 1)
    assert init_pid(lane, running.id) == pid
    assert running.log().count("booted") == 1
    assert "kept" in lane.thaw("ls").stdout
    config = json.loads((path_of(lane, "kept") / "config.json").read_text())
    assert config["origin"]["container"] == "app"
    assert config["origin"]["image"] == BUSYBOX_IMAGE
    assert config["origin"]["args"] == COMMAND
    assert config["host"]["kernel"] == os.uname().release
    assert config["host"]["criu"]
    assert config["host"]["cpu_features"]
    assert config["sizes"]["criu"] > 0
    lane.thaw("rm", "kept")
    assert "kept" not in lane.thaw("ls").stdout


def test_exit_ends_the_container(lane: Lane) -> None:
    with lane.pod("exit") as pod:
        container = boot(pod)
        checkpoint(lane, container, "exit", "--exit")
        assert container.wait() == 137
    with lane.pod("exit-back", annotations={SNAPSHOT: "exit", **FAIL}) as pod:
        assert ask(pod.container("app", BUSYBOX_IMAGE, COMMAND).start()).asked == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("auto", "reserved"),
        ("../x", "reference"),
        ("a/b:c", "reference"),
        ("x@sha256:0", "reference"),
        ("Capital", "bad snapshot name"),
        (".hidden", "bad snapshot name"),
        ("x" * 64, "bad snapshot name"),
        ("", "bad snapshot name"),
    ],
)
def test_a_bad_name_is_refused(lane: Lane, running: Container, name: str, words: str) -> None:
    done = thaw_checkpoint(lane, running.id, name)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_is_taken_stays_what_it_is(lane: Lane, running: Container) -> None:
    checkpoint(lane, running, "taken")
    before = path_of(lane, "taken")
    done = thaw_checkpoint(lane, running.id, "taken")
    assert done.returncode != 0
    assert "a snapshot named taken exists" in done.stderr
    assert path_of(lane, "taken") == before
    assert len(ids(lane)) == 1, "and nothing is left of the other one"
    assert ask(running)


def test_an_unknown_container(lane: Lane) -> None:
    done = thaw_checkpoint(lane, "0123456789", "nobody")
    assert done.returncode != 0
    assert "no container 0123456789" in done.stderr


# -- what is in it ---------------------------------------------------------------------------------

CHANGES = """\
import os, shutil, signal
os.unlink("/etc/group")
shutil.rmtree("/var")
os.mkdir("/var", 0o750)
open("/var/new", "w").write("new")
os.makedirs("/root/deep/er")
open("/root/coloured", "w").write("x")
os.setxattr("/root/coloured", "user.colour", b"red")
os.chown("/root/coloured", 1000, 1001)
open("/root/one", "w").write("linked")
os.link("/root/one", "/root/two")
os.symlink("one", "/root/soft")
os.mkfifo("/root/fifo", 0o600)
with open("/root/holes", "wb") as file:
    file.truncate(64 << 20)
open("/etc/passwd", "a").write("worker:x:1000:1001::/:/bin/sh\\n")
open("/dev/shm/shared", "w").write("in memory")
print("booted")
while True:
    signal.pause()
"""
LOOK = """\
import json, os
one, two = os.stat("/root/one"), os.stat("/root/two")
print(json.dumps({
    "deleted": os.path.exists("/etc/group"),
    "opaque": os.listdir("/var"),
    "mode": oct(os.stat("/var").st_mode),
    "colour": os.getxattr("/root/coloured", "user.colour").decode(),
    "owner": [os.stat("/root/coloured").st_uid, os.stat("/root/coloured").st_gid],
    "linked": one.st_ino == two.st_ino and one.st_nlink,
    "soft": os.readlink("/root/soft"),
    "root": sorted(os.listdir("/root")),
    "sparse": [os.stat("/root/holes").st_size, os.stat("/root/holes").st_blocks],
    "user": "worker" in open("/etc/passwd").read(),
    "shared": open("/dev/shm/shared").read(),
}))
"""


def look(container: Container) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(python(container, LOOK))
    return seen


def restore(pod: Pod, program: str) -> Container:
    return host_python(pod, program).start()


def test_the_difference_of_the_root_file_system(lane: Lane) -> None:
    with lane.pod("changes") as pod:
        container = restore(pod, CHANGES)
        container.wait_for_log("booted")
        seen = look(container)
        assert seen["deleted"] is False
        assert seen["opaque"] == ["new"]
        checkpoint(lane, container, "first")
    with tarfile.open(path_of(lane, "first") / "rootfs.tar.0000") as difference:
        whiteout = difference.getmember("./etc/group")
        assert whiteout.ischr()
        assert (whiteout.devmajor, whiteout.devminor) == (0, 0)
        var = difference.getmember("./var")
        assert var.pax_headers["SCHILY.xattr.trusted.overlay.opaque"] == "y"
    for name, following in (("first", "second"), ("second", "third")):
        with lane.pod("changed", annotations={SNAPSHOT: name, **FAIL}) as pod:
            container = restore(pod, CHANGES)
            assert look(container) == seen
            checkpoint(lane, container, following)  # it holds the difference again


# Files that only the worker has: mapped, open, unlinked, in memory and in the root file system.
FILES = """\
import mmap, os, signal, sys
def mapped(path, unlink):
    with open(path, "w+b") as file:
        file.truncate(8192)
        memory = mmap.mmap(file.fileno(), 8192)
    memory[:6] = b"before"
    for fd in os.listdir("/proc/self/fd"):  # mmap keeps the file open: only the mapping shall
        if os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}") == path:
            os.close(int(fd))
    if unlink:
        os.unlink(path)
    return memory
maps = [mapped("/dev/shm/kept", False), mapped("/dev/shm/gone", True),
        mapped("/root/kept", False), mapped("/root/gone", True), mmap.mmap(-1, 8192)]
maps[-1][:6] = b"before"
files = [open(path, "w+b") for path in ("/root/open", "/dev/shm/open", "/dev/shm/open-kept")]
for file in files:
    file.write(b"before")
    file.flush()
for path in ("/root/open", "/dev/shm/open"):
    os.unlink(path)
def show(*_):
    for file in files:
        file.seek(0)
    held = [memory[:6].decode() for memory in maps] + [file.read(6).decode() for file in files]
    print("holds", *held)
def change(*_):
    for memory in maps:
        memory[:6] = b"after!"
    for file in files:
        file.seek(0)
        file.write(b"after!")
        file.flush()
    print("changed")
signal.signal(signal.SIGUSR1, show)
signal.signal(signal.SIGUSR2, change)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("booted")
while True:
    signal.pause()
"""
HELD = 8


def held(container: Container) -> list[str]:
    return told(container, "USR1", "holds").split()


def told(container: Container, how: str, word: str) -> str:
    before = container.log().count(word)
    container.exec(["/usr/bin/python3", "-Sc", f"import os, signal; os.kill(1, signal.SIG{how})"])
    wait_until(lambda: container.log().count(word) > before, word)
    return container.log().rpartition(word)[2].partition("\n")[0]


def test_files_that_only_the_worker_has_come_back_every_time(lane: Lane) -> None:
    with lane.pod("files") as pod:
        container = restore(pod, FILES)
        container.wait_for_log("booted")
        assert held(container) == ["before"] * HELD
        checkpoint(lane, container, "files")
        told(container, "USR2", "changed")
        assert held(container) == ["after!"] * HELD
    with lane.pod("files-1", annotations={SNAPSHOT: "files", **FAIL}) as pod:
        for attempt in range(2):  # the second time over what the first has left in /dev/shm
            container = host_python(pod, FILES, attempt=attempt).start()
            assert held(container) == ["before"] * HELD
            told(container, "USR2", "changed")
            assert held(container) == ["after!"] * HELD
            checkpoint(lane, container, f"files-after-{attempt}")
            container.stop()
            assert container.wait() == 7
    with lane.pod("files-2", annotations={SNAPSHOT: "files-after-1", **FAIL}) as pod:
        assert held(restore(pod, FILES)) == ["after!"] * HELD


# -- one that is interrupted -----------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["network-lock", "post-dump"])
@pytest.mark.parametrize("victim", ["shim/engine.py", "criu: dump"])
def test_an_interrupted_one_is_none(lane: Lane, stage: str, victim: str) -> None:
    with gate(lane, stage) as held_back, lane.pod("interrupted") as pod:
        container = boot(pod)
        before = ask(container)
        with dumping(lane, container, "half") as dump:
            held_back.wait()
            os.kill(children(shim_pid(lane, container.id), victim)[0], signal.SIGKILL)
            held_back.open()
            failed = dump.result(60)
        assert failed.returncode != 0
        assert "Traceback" not in failed.stderr
        assert "half" not in lane.thaw("ls").stdout
        assert not exists(lane, "half")
        assert ask(container) == (before.token, before.asked + 1)
    # Whatever it had written so far goes with the next one, which is a good one.
    with lane.pod("whole") as pod:
        checkpoint(lane, boot(pod), "half")
    assert ids(lane) == {path_of(lane, "half").name}
    assert list(lane.places.snapshots.glob(".draft-*")) == []


def test_one_whose_shim_is_killed_is_none(lane: Lane) -> None:
    with gate(lane, "post-dump") as held_back, lane.pod("beheaded") as pod:
        container = boot(pod)
        with dumping(lane, container, "half") as dump:
            held_back.wait()
            os.kill(shim_pid(lane, container.id), signal.SIGKILL)
            assert dump.result(60).returncode != 0
        held_back.open()
        assert container.wait() != 0
        assert not exists(lane, "half")
    with lane.pod("whole") as pod:
        checkpoint(lane, boot(pod), "half")
    assert ids(lane) == {path_of(lane, "half").name}
    assert list(lane.places.snapshots.glob(".draft-*")) == []


class dumping:  # noqa: N801 - reads as a verb
    """`thaw checkpoint` in another thread."""

    def __init__(self, lane: Lane, container: Container, name: str) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._dump = self._pool.submit(thaw_checkpoint, lane, container.id, name)

    def __enter__(self) -> Future[CompletedProcess[str]]:
        return self._dump

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


# -- as containerd asks for it ---------------------------------------------------------------------


def test_the_kubelets_checkpoint(lane: Lane, running: Container, tmp_path: Path) -> None:
    if lane.version.startswith("1"):
        pytest.skip("CheckpointContainer came with containerd 2.0")
    before = ask(running)
    running.checkpoint(tmp_path / "archive.tar")
    with tarfile.open(tmp_path / "archive.tar") as archive:
        inside = archive.getnames()
    assert "checkpoint/inventory.img" in inside
    assert ask(running) == (before.token, before.asked + 1)


def test_ctr_checkpoint(lane: Lane, running: Container) -> None:
    before = ask(running)
    image = "checkpoint/of-a-worker"
    lane.ctr("tasks", "checkpoint", running.id, image, namespace=CRI_NAMESPACE, check=False)
    assert ask(running) == (before.token, before.asked + 1)
    for line in lane.ctr("images", "list", "--quiet", namespace=CRI_NAMESPACE).stdout.split():
        if "checkpoint" in line:
            lane.ctr("images", "delete", "--sync", line, namespace=CRI_NAMESPACE)
