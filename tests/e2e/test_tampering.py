"""A sealed snapshot in which somebody has changed a byte: the pod boots cold, and it is said why.

The store keeps others out; this is what a disk, or a careless root, does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asking import audited
from bed.lane import Lane
from bed.pod import Container, Pod
from stored import path_of
from workers import SNAPSHOT, Line, host_python, kept_snapshot, outcome

pytestmark = [pytest.mark.one_lane]

PAGES = "pages/pages-1.img.0000"
# Memory of all kinds that there are files for: filled by us, left to CRIU, saved as files.
PROGRAM = """\
import mmap, os, signal
private = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
private[:] = os.urandom(2 << 20)
open("/root/written", "w").write("x" * 5000)
open("/dev/shm/written", "w").write("x" * 5000)
print("booted")
while True:
    signal.pause()
"""


@pytest.fixture(scope="module")
def sealed(lane: Lane) -> Iterator[str]:
    """A reference, by the digest, to a snapshot that is sealed."""

    def started(pod: Pod) -> Container:
        container = host_python(pod, PROGRAM).start()
        container.wait_for_log("booted")
        return container

    with kept_snapshot(lane, "sealed", started) as name:
        lane.thaw("verify", "--seal", name)
        digest = json.loads(lane.thaw("show", name, "-o", "json").stdout)["digest"]
        yield f"{name}@{digest}"


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    """A byte in the middle of a file is another one while the block lasts."""

    def flip() -> None:
        with open(path, "r+b") as file:
            offset = path.stat().st_size // 2
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1]))

    flip()
    try:
        yield
    finally:
        flip()


def come_to(lane: Lane, name: str) -> Line:
    """What becomes of a pod that asks for that snapshot."""
    with lane.pod("asking", annotations={SNAPSHOT: name}) as pod:
        container = host_python(pod, PROGRAM).start()
        return outcome(lane, container)


def test_nothing_changed(lane: Lane, sealed: str) -> None:
    assert come_to(lane, sealed).message == "restored"


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "criu/core-1.img",
        "criu/mm-1.img",
        "index/index.json",
        "index/extents",
        "index/pages-1.img",  # left to CRIU
        PAGES,  # in an extent
        "rootfs.tar.0000",
        "volumes/0.tar.0000",
    ],
)
def test_a_changed_byte(lane: Lane, sealed: str, file: str) -> None:
    with flipped(path_of(lane, sealed) / file):
        line = come_to(lane, sealed)
        done = lane.thaw("verify", sealed, check=False)
    assert line.message == "booting cold"
    assert line.fields["reason"] == "Damaged", line
    assert "damaged" in line.fields["hint"]
    assert audited(lane, "refuse")[-1]["reason"] == "Damaged"
    assert done.returncode == 4
    assert Path(file).name in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("file", ["config.json", "criu/core-1.img"])
def test_a_changed_byte_of_a_tag(lane: Lane, sealed: str, file: str) -> None:
    with flipped(path_of(lane, sealed) / file):
        line = come_to(lane, sealed.partition("@")[0])
    assert (line.message, line.fields["reason"]) == ("booting cold", "Damaged"), line


def test_a_changed_manifest(lane: Lane, sealed: str) -> None:
    """Whoever names the digest is told; by its name the files are still what they were."""
    path = path_of(lane, sealed)
    manifest = path / "blobs/sha256" / sealed.rpartition(":")[2]
    with flipped(manifest):
        line = come_to(lane, sealed)
        assert (line.message, line.fields["reason"]) == ("booting cold", "Damaged"), line
        assert lane.thaw("verify", sealed, check=False).returncode == 4
