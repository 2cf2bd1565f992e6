"""A restore that cannot be: the container boots cold under the same id, or fails, and says why.

The failing containers share one pod, whose shim lives through all of them; what is unfit about a
pod as a whole has a pod of its own.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from bed.cri import api_pb2 as api
from bed.images import BUSYBOX_IMAGE, LAYERS_IMAGE
from bed.lane import Lane
from bed.pod import Container, Mount, Pod
from gate import configured, fake_criu
from stored import copied_snapshot, edit_config, note_file
from workers import (
    COMMAND,
    ON_FAILURE,
    SNAPSHOT,
    Line,
    ask,
    kept_snapshot,
    outcome,
)

Spoil = Callable[[Path], object]
CLOSED = 9  # a port that nobody listens on
LEFT = "/left-behind"  # the worker of the snapshot has written it, no cold one does


class Case(NamedTuple):
    """One way to fail: the annotation, the snapshot or the container is not as it should be."""

    reason: str
    words: str  # in the error
    name: str = "spoilt"  # of the snapshot; "spoilt" is a copy that `spoil` has changed
    spoil: Spoil | None = None
    image: str = BUSYBOX_IMAGE
    args: Sequence[str] = COMMAND
    mounts: Sequence[str] = ("rw /data",)
    criu: str = ""  # text of a shell script in its place


def truncate(pattern: str) -> Spoil:
    def cut(snapshot: Path) -> None:
        [path] = snapshot.glob(pattern)
        os.truncate(path, path.stat().st_size // 2)

    return cut


def overwrite(name: str) -> Spoil:
    return lambda snapshot: (snapshot / name).write_bytes(b"?" * (snapshot / name).stat().st_size)


def unnoticed(name: str) -> Spoil:
    """Without an index, and with the right checksum, nobody looks at these but CRIU."""

    def spoil(snapshot: Path) -> None:
        index = [f"index/{path.name}" for path in (snapshot / "index").iterdir()]
        shutil.rmtree(snapshot / "index")
        overwrite(name)(snapshot)
        edit_config(snapshot, lambda c: [c["files"].pop(file) for file in index])
        note_file(snapshot, name)

    return spoil


def remove(pattern: str) -> Spoil:
    def removed(snapshot: Path) -> None:
        for path in snapshot.glob(pattern):
            path.unlink()

    return removed


def edit(change: Callable[[dict[str, Any]], object]) -> Spoil:
    return lambda snapshot: edit_config(snapshot, change)


def link(snapshot: Path) -> None:
    snapshot.rename(snapshot.with_name(".elsewhere"))
    snapshot.symlink_to(".elsewhere")


def link_config(snapshot: Path) -> None:
    (snapshot / "config.json").rename(snapshot / "other.json")
    (snapshot / "config.json").symlink_to("other.json")


def link_pages(snapshot: Path) -> None:
    piece = snapshot / "pages/pages-1.img.0000"
    piece.rename(snapshot / "elsewhere")
    piece.symlink_to(snapshot / "elsewhere")


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new, 1))


CRIU_FAILS = 'case "$1" in swrk) exit 1;; *) exec {criu} "$@";; esac\n'
CASES = {
    "absent": Case("NoSuchSnapshot", "no snapshot named absent", name="absent"),
    "parent": Case("BadSnapshotName", "bad snapshot reference", name="../x"),
    "path": Case("BadSnapshotName", "bad snapshot reference", name="/var/lib/thaw/snapshots/x"),
    "tag": Case("BadSnapshotName", "reference", name="a/b:c"),
    "digest": Case("NoSuchSnapshot", "x@sha256:0", name="x@sha256:" + "0" * 64),
    "half a digest": Case("BadSnapshotName", "bad digest", name="x@sha256:" + "0" * 63),
    "registry": Case("Denied", "r.example/x:1", name="r.example/x:1"),
    "capitals": Case("BadSnapshotName", "bad snapshot name", name="Base"),
    "empty": Case("BadSnapshotName", "bad snapshot name", name=""),
    "draft": Case("BadSnapshotName", "bad snapshot name", name=".draft-1"),
    "image": Case("Unfit", "made from image", image=LAYERS_IMAGE),
    "args": Case("Unfit", "arguments, the pod", args=[*COMMAND, "more"]),
    "lacks a mount": Case("Unfit", "lacks a mount at /data", mounts=()),
    "another mount": Case("Unfit", "mount at /more", mounts=("rw /data", "rw /more")),
    "read-only mount": Case("Unfit", "mount /data was", mounts=("ro /data",)),
    "cut config": Case("Damaged", "config.json", spoil=truncate("config.json")),
    "no config": Case("Unfit", "config.json", spoil=remove("config.json")),
    "linked config": Case("Unfit", "config.json", spoil=link_config),
    "edited config": Case(
        "Damaged",
        "its checksum is wrong",
        spoil=lambda path: rewrite(path / "config.json", b"sse2", b"sse3"),
    ),
    "no origin": Case("Damaged", "'origin'", spoil=edit(lambda c: c.pop("origin"))),
    "format": Case("Unfit", "format 99", spoil=edit(lambda c: c.update(format=99))),
    "architecture": Case(
        "Unfit", "made on vax", spoil=edit(lambda c: c["host"].update(architecture="vax"))
    ),
    "cpu": Case(
        "Unfit",
        "CPU lacks levitate",
        spoil=edit(lambda c: c["host"]["cpu_features"].append("levitate")),
    ),
    "capability": Case(
        "Unfit",
        "CAP_SYS_ADMIN",
        spoil=edit(lambda c: c["origin"]["capabilities"]["effective"].append("CAP_SYS_ADMIN")),
    ),
    "owner": Case("Unfit", "written to by others", spoil=lambda path: os.chown(path, 1000, 1000)),
    "mode": Case("Unfit", "written to by others", spoil=lambda path: path.chmod(0o777)),
    "link": Case("Unfit", "is not a folder", spoil=link),
    "cut pages": Case("Damaged", "pages-1.img.0000", spoil=truncate("pages/pages-1.img.0000")),
    "no pages": Case("Damaged", "pages-1.img.0000", spoil=remove("pages/pages-1.img.0000")),
    "no core": Case("Damaged", "core-1.img", spoil=remove("criu/core-1.img")),
    "other bytes": Case("Damaged", "is not what it was", spoil=overwrite("criu/core-1.img")),
    "no CRIU's bytes": Case("RestoreFailed", "Error (criu/", spoil=unnoticed("criu/mm-1.img")),
    "no index": Case("Damaged", "index/", spoil=remove("index/*")),
    "no images": Case("Damaged", "criu", spoil=lambda path: shutil.rmtree(path / "criu")),
    "no difference": Case("Damaged", "rootfs.tar", spoil=remove("rootfs.tar.*")),
    "another difference": Case("Damaged", "rootfs.tar", spoil=overwrite("rootfs.tar.0000")),
    "linked pages": Case("Unfit", "pages-1.img.0000", spoil=link_pages),
    "somebody's pages": Case(
        "Unfit",
        "written to by others",
        spoil=lambda path: os.chown(path / "pages/pages-1.img.0000", 1000, 1000),
    ),
    "criu fails": Case("RestoreFailed", "runc restore", criu=CRIU_FAILS),
    "criu is no CRIU": Case("RestoreFailed", "runc restore", criu="echo no\n"),
    "criu is none": Case("RestoreFailed", "runc restore", criu="exit 127\n"),
}
REFUSED = ("absent", "tag", "args", "other bytes", "no CRIU's bytes", "criu is none")


@pytest.fixture(scope="module")
def data(lane: Lane) -> Path:
    folder = lane.places.folder / "data"
    folder.mkdir(exist_ok=True)
    return folder


def mounted(data: Path, words: Sequence[str]) -> list[Mount]:
    pairs = [word.split() for word in words]
    return [Mount(data, path, readonly=how == "ro") for how, path in pairs]


@pytest.fixture(scope="module")
def base(lane: Lane, data: Path) -> Iterator[str]:
    """A good snapshot, of a worker that has left files in its root and its shared memory."""

    def make(pod: Pod) -> Container:
        mounts = mounted(data, ["rw /data"])
        container = pod.container("app", BUSYBOX_IMAGE, COMMAND, mounts=mounts).start()
        container.wait_for_log("booted")
        container.exec(["touch", LEFT, f"/dev/shm{LEFT}"])
        return container

    with kept_snapshot(lane, "base", make) as name:
        yield name


@pytest.fixture(scope="module")
def pod(lane: Lane) -> Iterator[Pod]:
    with lane.pod("failures") as pod:
        yield pod


class Attempt:
    """A container that shall be restored and cannot be."""

    _attempts = itertools.count()  # each has a log of its own

    def __init__(self, lane: Lane, pod: Pod, base: str, data: Path) -> None:
        self._lane, self.pod, self._base, self._data = lane, pod, base, data
        self._after = ExitStack()
        self.container: Container | None = None

    def create(self, case: Case, **notes: str) -> Container:
        if case.name == "spoilt":
            copy = copied_snapshot(self._lane, self._base, case.name)
            self._after.callback(_forget, copy, self._lane.places.snapshots / "names/spoilt")
            (case.spoil or _nothing)(copy)
        if case.criu:
            self._after.enter_context(
                configured(self._lane, fake_criu(self._lane, "fake", case.criu))
            )
        self.container = self.pod.container(
            "app",
            case.image,
            case.args,
            mounts=mounted(self._data, case.mounts),
            annotations={SNAPSHOT: case.name, **notes},
            attempt=next(self._attempts),
        )
        return self.container

    def end(self) -> None:
        if self.container is not None:
            self.container.remove()
        self._after.close()


def _nothing(_path: Path) -> None: ...


def _forget(copy: Path, name: Path) -> None:
    for path in (copy, copy.with_name(".elsewhere")):
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
    name.unlink()


@pytest.fixture
def attempt(lane: Lane, pod: Pod, base: str, data: Path) -> Iterator[Attempt]:
    attempt = Attempt(lane, pod, base, data)
    yield attempt
    attempt.end()


def is_cold(container: Container) -> None:
    """A working container that has nothing of the failed worker."""
    log = container.wait_for_log("booted")
    assert log.count("booted") == 1
    assert ask(container).asked == 1
    assert container.exec(["ls", LEFT]).exit_code == 1
    assert container.exec(["ls", f"/dev/shm{LEFT}"]).exit_code == 1


def says(line: Line, case: Case) -> None:
    assert line.fields["reason"] == case.reason
    assert case.words in line.fields["error"]
    assert line.fields["hint"]


@pytest.mark.one_lane
@pytest.mark.parametrize("name", CASES)
def test_it_boots_cold(lane: Lane, attempt: Attempt, name: str) -> None:
    case = CASES[name]
    container = attempt.create(case).start()
    line = outcome(lane, container)
    assert line.message == "booting cold"
    says(line, case)
    is_cold(container)
    with pytest.raises(ConnectionRefusedError):  # by the pod itself: a lock would drop the packet
        socket.create_connection((attempt.pod.ip, CLOSED), 30)
    container.stop(timeout=60)  # it handles SIGTERM, if it gets the time
    assert container.wait() == 7


@pytest.mark.parametrize("name", REFUSED)
def test_it_fails_if_it_shall(lane: Lane, attempt: Attempt, name: str) -> None:
    case = CASES[name]
    container = attempt.create(case, **{ON_FAILURE: "fail"})
    with pytest.raises(grpc.RpcError) as refusal:
        container.start()
    assert case.words in refusal.value.details()
    line = outcome(lane, container)
    assert line.message == "not restored"
    says(line, case)
    assert container.log() == ""
    assert container.status().state == api.CONTAINER_EXITED


def test_a_bad_word_for_failure_boots_cold(lane: Lane, attempt: Attempt, base: str) -> None:
    case = Case("BadAnnotation", "maybe", name=base)
    container = attempt.create(case, **{ON_FAILURE: "maybe"}).start()
    says(outcome(lane, container), case)
    is_cold(container)


def test_the_good_snapshot_is_good(lane: Lane, attempt: Attempt, base: str) -> None:
    """Or the others would fail for no reason of theirs; and the pod's shim still restores."""
    container = attempt.create(Case("", "", name=base)).start()
    assert outcome(lane, container).message == "restored"
    assert ask(container).asked == 1
    assert container.exec(["ls", LEFT, f"/dev/shm{LEFT}"]).exit_code == 0


PODS = {
    "shared pid": (api.NamespaceOption(network=api.POD, pid=api.POD, ipc=api.POD), "pid namespace"),
    "host pid": (api.NamespaceOption(network=api.POD, pid=api.NODE, ipc=api.POD), "hostPID"),
    "host network": (
        api.NamespaceOption(network=api.NODE, pid=api.CONTAINER, ipc=api.POD),
        "hostNetwork",
    ),
}


@pytest.mark.parametrize("kind", PODS)
def test_pods_that_no_snapshot_fits(lane: Lane, base: str, data: Path, kind: str) -> None:
    namespaces, words = PODS[kind]
    with lane.pod("unfit", namespaces=namespaces, annotations={SNAPSHOT: base}) as pod:
        security = api.LinuxContainerSecurityContext(namespace_options=namespaces)
        container = pod.container(
            "app",
            BUSYBOX_IMAGE,
            COMMAND,
            mounts=mounted(data, ["rw /data"]),
            linux=api.LinuxContainerConfig(security_context=security),
        ).start()
        line = outcome(lane, container)
        assert (line.message, line.fields["reason"]) == ("booting cold", "Unfit")
        assert words in line.fields["error"]
        container.wait_for_log("booted")


def test_a_pod_whose_restore_failed_can_be_removed(lane: Lane) -> None:
    notes = {SNAPSHOT: "absent", ON_FAILURE: "fail"}
    with lane.pod("removable", annotations=notes) as pod:
        container = pod.container("app", BUSYBOX_IMAGE, COMMAND)
        with pytest.raises(grpc.RpcError):
            container.start()
