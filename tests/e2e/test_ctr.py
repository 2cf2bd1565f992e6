"""`ctr` on our shim, verb by verb, as on containerd's own; checkpoint and restore included."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from bed import fetch
from bed.images import BUSYBOX_IMAGE, LAYERS, LAYERS_IMAGE
from bed.lane import Lane
from drive.client import piped, run_words

HANDLERS = ("runc", "thaw")


@contextmanager
def detached(
    lane: Lane, name: str, *args: str, handler: str = "thaw", more: tuple[str, ...] = ()
) -> Iterator[None]:
    """A container that `ctr run --detach` has started."""
    words = ["run", "--detach", *more, *lane.runtime_arguments(handler), BUSYBOX_IMAGE, name]
    lane.ctr(*words, *(args or ("sleep", "1000")))
    try:
        yield
    finally:
        removed(lane, name)


def removed(lane: Lane, name: str) -> None:
    lane.ctr("tasks", "delete", "--force", name, check=False)
    lane.ctr("containers", "delete", name, check=False)


def status(lane: Lane, name: str) -> str:
    rows = [line.split() for line in lane.ctr("tasks", "list").stdout.splitlines()]
    return next((row[2] for row in rows if row[0] == name), "none")


def told(lane: Lane, handler: str) -> list[tuple[int, str]]:
    """What `ctr` says and returns for one container of a handler, verb by verb."""
    name = f"verbs-{handler}"
    said = []

    def say(*words: str) -> None:
        done = lane.ctr("tasks", *words, check=False)
        said.append((done.returncode, done.stdout))

    with detached(lane, name, handler=handler):
        exec_it = ("exec", "--exec-id", "x")
        say(*exec_it, name, "sh", "-c", "echo out; exit 5")
        say(*exec_it, name, "no-such-program")
        say("pause", name)
        said.append((0, status(lane, name)))
        say("pause", name)
        say(*exec_it, name, "true")
        say("delete", name)
        say("resume", name)
        said.append((0, status(lane, name)))
        say("resume", name)
        rows = lane.ctr("tasks", "ps", name).stdout.splitlines()
        said.append((len(rows), " ".join(rows[0].split())))  # columns are as wide as the pids
        metrics = lane.ctr("tasks", "metrics", name).stdout
        fields = (line.split()[0] for line in metrics.splitlines() if line)
        said.append((0, str(sorted(set(fields) - {name}))))
        say("kill", "--signal", "SIGKILL", name)
        lane.ctr("tasks", "delete", "--force", name, check=False)
        say("kill", name)
    return said


def test_every_verb_as_with_containerds_own(lane: Lane) -> None:
    theirs, ours = (told(lane, handler) for handler in HANDLERS)
    assert ours == theirs


def test_exit_status_and_output(lane: Lane) -> None:
    script = "echo out; echo err >&2; exit 9"
    done = piped(lane, *run_words(lane, "ends", "sh", "-c", script, more=("--rm",)))
    assert (done.returncode, done.stdout, done.stderr) == (9, b"out\n", b"err\n")


def test_a_hundred_layers_read_only(lane: Lane) -> None:
    words = ["run", "--rm", "--read-only", *lane.runtime_arguments(), LAYERS_IMAGE, "layers"]
    done = piped(lane, *words, "sh", "-c", "ls -d /layer-* | wc -l; touch /x || echo refused")
    assert done.stdout.decode().split() == [str(LAYERS - 1), "refused"]


def test_without_a_cgroup(lane: Lane) -> None:
    words = ["run", "--detach", "--cgroup", "", "--runtime", "io.containerd.thaw.v1"]
    words += ["--runtime-config-path", str(lane.places.thaw_config), BUSYBOX_IMAGE, "nogroup"]
    lane.ctr(*words, "sleep", "1000")
    try:
        done = lane.ctr("tasks", "exec", "--exec-id", "x", "nogroup", "echo", "hello")
        assert done.stdout == "hello\n"
        assert len(lane.ctr("tasks", "ps", "nogroup").stdout.splitlines()) >= 2
        assert "memory" in lane.ctr("tasks", "metrics", "nogroup").stdout
    finally:
        removed(lane, "nogroup")


# Renamed into place: a reader never meets the file between its truncation and its new number.
_COUNT = "i=$((i+1)); echo $i > /next; mv /next /count; sleep 0.02"
COUNTING = ("sh", "-c", f"i=0; while :; do {_COUNT}; done")


def count(lane: Lane, name: str) -> int:
    read = ("sh", "-c", "cat /count 2>/dev/null || echo 0")
    return int(lane.ctr("tasks", "exec", "--exec-id", "count", name, *read).stdout)


@pytest.mark.parametrize("ends", [False, True])
def test_checkpoint_into_a_folder(lane: Lane, tmp_path: Path, ends: bool) -> None:
    images, work = tmp_path / "images", tmp_path / "work"
    images.mkdir()
    name = f"dumped-{ends}"
    with detached(lane, name, *COUNTING, name):  # 1.6 knows one checkpoint of equal containers
        before = count(lane, name)
        options = ["--image-path", str(images), "--work-path", str(work)]
        lane.ctr("tasks", "checkpoint", *options, *(["--exit"] if ends else []), name)
        if lane.version.startswith("1"):
            # Before 2.0 `ctr` sends its options to runtimes named io.containerd.runc* only.
            assert status(lane, name) == "RUNNING"
            return
        names = {path.name for path in images.iterdir()}
        assert {"inventory.img", "thaw.tar"} <= names
        assert not [path for path in images.iterdir() if path.is_dir()]
        assert (work / "dump.log").exists()
        assert status(lane, name) == ("STOPPED" if ends else "RUNNING")
        if not ends:
            assert count(lane, name) >= before


def checkpointed_and_restored(lane: Lane, handler: str) -> tuple[bool, ...]:
    """Whether `ctr` can dump a container of a handler, restore it, and find it as it was."""
    reference, name, copy = f"thaw.local/{handler}:1", f"original-{handler}", f"copy-{handler}"
    with detached(lane, name, *COUNTING, name, handler=handler, more=("--null-io",)):
        while count(lane, name) < 5:
            pass
        words = ["containers", "checkpoint", "--rw", "--image", "--task", name, reference]
        dumped = lane.ctr(*words, check=False)
    try:
        words = ["containers", "restore", "--rw", "--live", copy, reference]
        restored = lane.ctr(*words, check=False)
        runs = status(lane, copy) == "RUNNING"
        counts = runs and count(lane, copy) >= 5
    finally:
        removed(lane, copy)
        lane.ctr("images", "remove", reference, check=False)
    return dumped.returncode == 0, restored.returncode == 0, runs, counts


def test_checkpoint_and_restore_with_ctr(lane: Lane) -> None:
    # containerd's own cannot here: CRIU's default network lock needs iptables-restore.
    assert checkpointed_and_restored(lane, "thaw") == (True, True, True, True)


def test_a_pod_container_is_checkpointed_through_the_cri(lane: Lane, tmp_path: Path) -> None:
    with lane.pod("cri-dump") as pod:
        container = pod.container("app", BUSYBOX_IMAGE, ["sh", "-c", "echo ready; sleep 1000"])
        container.start()
        container.wait_for_log("ready")
        archive = tmp_path / "checkpoint.tar"
        if lane.version.startswith("1"):
            with pytest.raises(grpc.RpcError) as raised:
                container.checkpoint(archive)
            assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
            return
        container.checkpoint(archive)
        assert container.running
        with tarfile.open(archive) as tar:
            names = {name.removeprefix("./") for name in tar.getnames()}
        assert {"spec.dump", "config.dump", "checkpoint/inventory.img"} <= names


@pytest.mark.ctr
def test_our_shim_in_the_place_of_containerds_own(private_lane: Lane) -> None:
    """As with `runtime_path`: the options are runc's own."""
    lane = private_lane
    assert lane.installation
    link = lane.places.bin / "containerd-shim-runc-v2"
    link.unlink()
    link.symlink_to(lane.installation.shim)
    runc = lane.places.folder / "runc-of-ours"
    runc.write_text(
        f'#!/bin/sh\necho "$@" >> {lane.places.folder}/runc.calls\nexec {fetch.runc()} "$@"\n'
    )
    runc.chmod(0o755)
    root = str(lane.places.runc_root)
    words = ["run", "--rm", "--runtime", "io.containerd.runc.v2", "--runc-binary", str(runc)]
    words += ["--runc-root", root, "--cgroup", f"/{lane.name}/ctr", BUSYBOX_IMAGE, "typed"]
    assert lane.ctr(*words, "echo", "hello").stdout == "hello\n"
    calls = (lane.places.folder / "runc.calls").read_text()
    assert f"--root {root}/{lane.name}" in calls
    assert " create " in calls
    with lane.pod("typed", handler="runc") as pod:
        container = pod.container("app", BUSYBOX_IMAGE, ["sleep", "1000"]).start()
        assert container.exec(["echo", "hello"]).stdout == "hello\n"
        bundle = lane.places.state / "io.containerd.runtime.v2.task/k8s.io" / container.id
        assert json.loads((bundle / "options.json").read_text())["Root"] == root
        if lane.version.startswith("2"):
            archive = lane.places.folder / "typed.tar"
            container.checkpoint(archive)
            assert container.running
