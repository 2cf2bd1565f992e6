"""Memory that cannot be filled: nothing half-filled ever runs, and the annotation's word is kept.

The worker has a quarter of a gigabyte of random memory and tells its digest when it is asked, so
that one that ran with a byte missing would say so.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import grpc
import pytest
from bed.cri import api_pb2 as api
from bed.fetch import criu
from bed.images import HOST_IMAGE
from bed.lane import Lane
from bed.pod import Container, Pod, linux_config
from gate import configured, gate
from stored import copied_snapshot, edit_config, forget, path_of
from workers import (
    ON_FAILURE,
    SNAPSHOT,
    USR,
    alive,
    children,
    drop_cache,
    kept_snapshot,
    outcome,
    script,
    shim_pid,
    wait_until,
)

pytestmark = [pytest.mark.one_lane]

SIZE = 256 << 20
BULK = f"""\
import hashlib, os, signal
data = bytearray(os.urandom(1 << 20) * {SIZE >> 20})
def tell(*_):
    print("digest", hashlib.sha256(data).hexdigest(), flush=True)
signal.signal(signal.SIGUSR1, tell)
print("booted", flush=True)
tell()
while True:
    signal.pause()
"""
SLOW = "\n[restore]\nthreads = 1\nmemory = 0.0\n"
attempts = iter(range(1000))


def digest_of(container: Container) -> str:
    """What the worker says that its memory is."""
    before = container.log().count("digest ")
    container.exec(["/usr/bin/kill", "-USR1", "1"])
    wait_until(lambda: container.log().count("digest ") > before, "a digest")
    return container.log().rpartition("digest ")[2].split()[0]


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def bulk(lane: Lane, told: dict[str, str]) -> Iterator[str]:
    def make(pod: Pod) -> Container:
        container = pod.container("app", HOST_IMAGE, script(BULK), mounts=[USR]).start()
        container.wait_for_log("digest")
        told["digest"] = container.log().rpartition("digest ")[2].split()[0]
        return container

    with kept_snapshot(lane, "bulk", make) as name:
        yield name


@pytest.fixture
def pod(lane: Lane) -> Iterator[Pod]:
    with lane.pod("faults") as pod:
        yield pod


def wanting(pod: Pod, name: str, *, must: bool = True, limit: int = 0) -> Container:
    """A container that shall be restored; each has a log of its own."""
    return pod.container(
        "app",
        HOST_IMAGE,
        script(BULK),
        mounts=[USR],
        annotations={SNAPSHOT: name, **({ON_FAILURE: "fail"} if must else {})},
        linux=linux_config(memory_limit_in_bytes=limit),
        attempt=next(attempts),
    )


def refused(lane: Lane, container: Container, *words: str) -> None:
    """Its start fails with one of these words, and it has never run."""
    with pytest.raises(grpc.RpcError) as refusal:
        container.start()
    ended(lane, container, str(refusal.value.details()), *words)


def ended(lane: Lane, container: Container, said: str, *words: str) -> None:
    assert any(word in said for word in words), said
    line = outcome(lane, container)
    assert line.message == "not restored"
    assert container.log() == ""
    assert container.status().state == api.CONTAINER_EXITED
    container.remove()


@pytest.fixture
def spoilt(lane: Lane, bulk: str) -> Iterator[Path]:
    """A copy of the snapshot, for spoiling."""
    yield copied_snapshot(lane, bulk, "spoilt")
    forget(lane, "spoilt")


# -- damaged snapshots ----------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    """Change one bit."""
    with open(path, "r+b") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def pages(snapshot: Path) -> Path:
    """The file with the most pages."""
    return max(snapshot.glob("pages/pages-*.img.*"), key=lambda path: path.stat().st_size)


def flip_an_extent(snapshot: Path) -> None:
    flip(pages(snapshot), pages(snapshot).stat().st_size // 2)


def flip_the_skeleton(snapshot: Path) -> None:
    path = max(snapshot.glob("index/pages-*.img"), key=lambda path: path.stat().st_size)
    flip(path, path.stat().st_size // 2)


def flip_the_document(snapshot: Path) -> None:
    flip(snapshot / "index" / "index.json", 40)


def flip_the_extents(snapshot: Path) -> None:
    path = snapshot / "index" / "extents"
    flip(path, path.stat().st_size - 20)


def flip_an_image(snapshot: Path) -> None:
    flip(snapshot / "criu" / "files.img", 30)


def cut_off(snapshot: Path) -> None:
    """So that the config document does not show it."""
    path = pages(snapshot)
    size = path.stat().st_size // 2
    os.truncate(path, size)
    edit_config(snapshot, lambda config: config["pages"].update({path.name: size}))


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "an extent": (flip_an_extent, "has another checksum"),
    "the skeleton": (flip_the_skeleton, "is not what it was"),
    "the document": (flip_the_document, "index.json"),
    "the extents": (flip_the_extents, "extents"),
    "an image": (flip_an_image, "files.img"),
    "a pages file": (cut_off, "pages-"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_damaged_snapshot_is_refused(lane: Lane, pod: Pod, spoilt: Path, what: str) -> None:
    spoil, words = SPOILT[what]
    spoil(spoilt)
    refused(lane, wanting(pod, "spoilt"), words)


def test_or_boots_cold(lane: Lane, pod: Pod, spoilt: Path, told: dict[str, str]) -> None:
    flip_an_extent(spoilt)
    container = wanting(pod, "spoilt", must=False).start()
    line = outcome(lane, container)
    assert (line.message, line.fields["reason"]) == ("booting cold", "Damaged")
    assert "has another checksum" in line.fields["error"]
    container.wait_for_log("digest")
    assert digest_of(container) != told["digest"], "it has drawn memory of its own"
    container.remove()


# -- in the middle of it --------------------------------------------------------------------------


class Filling:
    """A restore whose engine was stopped while it filled the worker's memory."""

    def __init__(self, lane: Lane, pod: Pod, name: str) -> None:
        self.lane = lane
        self.shim = shim_pid(lane, pod.id)
        self.container = wanting(pod, name)
        self.start: Future[Container] = self.container.starting()
        found: list[int] = []

        def there() -> list[int]:
            found[:] = self._find("shim/engine.py")
            return found

        wait_until(there, "an engine")
        self.engine = found[0]
        # So that we get to look before it is over, whatever else the machine does.
        os.setpriority(os.PRIO_PROCESS, self.engine, 19)
        self.init = self._worker_with_memory()
        os.kill(self.engine, signal.SIGSTOP)
        self.criu = self._find("criu: restore")[0]

    def _find(self, word: str) -> list[int]:
        return children(self.shim, word)

    def _worker_with_memory(self) -> int:
        """Looks without a pause, or it would be over."""
        while not self.start.done():
            for pid in children(self.engine, "-ISuc"):  # the worker's own command line
                if resident(pid) > 24 << 20:
                    return pid
        pytest.fail(f"it was over before it could be stopped: {self.start.exception()}")

    def go_on(self) -> None:
        os.kill(self.engine, signal.SIGCONT)


def resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


@pytest.fixture
def filling(lane: Lane, pod: Pod, bulk: str) -> Filling:
    drop_cache(pages(path_of(lane, bulk)))
    with configured(lane, criu(), SLOW):
        return Filling(lane, pod, bulk)


def fails(filling: Filling, *words: str) -> None:
    error = filling.start.exception(60)
    assert isinstance(error, grpc.RpcError)
    assert not alive(filling.init)
    ended(filling.lane, filling.container, str(error.details()), *words)


def test_the_worker_is_killed_while_it_is_filled(filling: Filling) -> None:
    os.kill(filling.init, signal.SIGKILL)
    filling.go_on()
    fails(filling, "cannot write", "no process")


def test_the_engine_is_killed_while_it_fills(filling: Filling) -> None:
    os.kill(filling.engine, signal.SIGKILL)
    fails(filling, "the engine process died")
    wait_until(lambda: not alive(filling.criu), "the end of CRIU")


def test_criu_is_killed_meanwhile(filling: Filling) -> None:
    os.kill(filling.criu, signal.SIGKILL)
    filling.go_on()
    fails(filling, "runc restore")


def test_it_is_cancelled_meanwhile(filling: Filling) -> None:
    filling.lane.ctr("tasks", "kill", "-s", "KILL", filling.container.id, namespace="k8s.io")
    error = filling.start.exception(60)
    assert isinstance(error, grpc.RpcError)
    assert not alive(filling.engine)
    assert not alive(filling.init)
    assert outcome(filling.lane, filling.container).message == "restore cancelled"
    assert filling.container.log() == ""


def test_a_file_that_shrinks_meanwhile(lane: Lane, pod: Pod, spoilt: Path) -> None:
    drop_cache(pages(spoilt))
    with configured(lane, criu(), SLOW):
        filling = Filling(lane, pod, "spoilt")
    os.truncate(pages(spoilt), 1 << 20)
    filling.go_on()
    fails(filling, "is cut off", "has another checksum")


STAGES = ("pre-restore", "post-restore", "network-unlock", "pre-resume", "post-resume")


@pytest.mark.parametrize("stage", STAGES)
def test_the_engine_is_killed_at_a_stage_of_criu(
    lane: Lane, pod: Pod, bulk: str, stage: str
) -> None:
    with gate(lane, stage) as held:
        container = wanting(pod, bulk, must=False)
        start = container.starting()
        held.wait()
        engine = children(shim_pid(lane, container.id), "shim/engine.py")[0]
        os.kill(engine, signal.SIGKILL)
        start.result(60)
    line = outcome(lane, container)
    assert (line.message, line.fields["reason"]) == ("booting cold", "RestoreFailed")
    container.wait_for_log("digest")
    assert container.log().count("booted") == 1
    container.remove()


def test_a_pod_without_room_for_it(lane: Lane, pod: Pod, bulk: str) -> None:
    container = wanting(pod, bulk, limit=SIZE // 2)
    refused(lane, container, "cannot write", "no process", "runc restore")
    after = wanting(pod, bulk, limit=2 * SIZE)
    after.start()
    assert outcome(lane, after).message == "restored"
    after.remove()


def test_the_good_snapshot_is_good(lane: Lane, pod: Pod, bulk: str, told: dict[str, str]) -> None:
    """Or the others would fail for no reason of theirs."""
    container = wanting(pod, bulk).start()
    line = outcome(lane, container)
    assert (line.message, line.fields["memory"]) == ("restored", "native")
    assert float(line.fields["gib"]) > 0.9 * SIZE / (1 << 30)
    assert digest_of(container) == told["digest"]
    container.remove()
