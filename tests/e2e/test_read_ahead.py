"""What a pod's snapshot has is read from the sandbox on, before there is a container for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from bed.lane import Lane
from bed.pod import Container, Pod
from stored import forget, path_of
from workers import (
    FAIL,
    SNAPSHOT,
    alive,
    boot,
    checkpoint,
    children,
    drop_cache,
    host_python,
    kept_snapshot,
    outcome,
    shim_pid,
    wait_until,
)

pytestmark = [pytest.mark.one_lane]

MIB = 1 << 20
SIZE = 96 * MIB
WORKER = f"""\
import os, signal
data = os.urandom({MIB}) * {SIZE // MIB}
print("booted", data[:8].hex(), flush=True)
def tell(*_):
    print("token", data[:8].hex(), "asked 0", flush=True)
signal.signal(signal.SIGUSR1, tell)
while True:
    signal.pause()
"""


def worker(pod: Pod) -> Container:
    container = host_python(pod, WORKER).start()
    container.wait_for_log("booted")
    return container


@pytest.fixture(scope="module")
def cold(lane: Lane) -> Iterator[str]:
    with kept_snapshot(lane, "cold", worker) as name:
        yield name


@pytest.fixture(autouse=True)
def dropped(lane: Lane, cold: str) -> None:
    for path in path_of(lane, cold).glob("pages/*"):
        drop_cache(path)


def engines(lane: Lane, pod: Pod) -> list[int]:
    return children(shim_pid(lane, pod.id), "shim/engine.py")


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0


def read_ahead(lane: Lane, pod: Pod) -> int:
    """Wait until the pod's one engine has read the snapshot; its pid.

    Some memory is the engine's own: with less it may have a tenth of the snapshot still to read.
    """

    def there() -> list[int]:
        return [pid for pid in engines(lane, pod) if anonymous(pid) > 1.1 * SIZE]

    wait_until(there, "a read-ahead")
    return engines(lane, pod)[0]


def ahead(lane: Lane, container: Container) -> float:
    """How many bytes a restore found in memory."""
    line = outcome(lane, container)
    assert line.message == "restored"
    return float(line.fields["ahead"]) * (1 << 30)


def test_before_there_is_a_container(lane: Lane, cold: str) -> None:
    with lane.pod("early", annotations={SNAPSHOT: cold, **FAIL}) as pod:
        engine = read_ahead(lane, pod)
        container = host_python(pod, WORKER).start()
        assert ahead(lane, container) > 0.9 * SIZE
        wait_until(lambda: not alive(engine), "the end of the engine")


def test_a_container_never_comes(lane: Lane, cold: str) -> None:
    with lane.pod("lonely", annotations={SNAPSHOT: cold}) as pod:
        engine = read_ahead(lane, pod)
    wait_until(lambda: not alive(engine), "the end of the engine")


def test_another_container_comes_first(lane: Lane, cold: str) -> None:
    """It boots cold, and what was read waits for the one that is meant."""
    with lane.pod("second", annotations={SNAPSHOT: cold, **FAIL}) as pod:
        engine = read_ahead(lane, pod)
        boot(pod, "side")
        assert engines(lane, pod) == [engine]
        assert ahead(lane, host_python(pod, WORKER).start()) > 0.9 * SIZE


def test_the_snapshot_was_made_anew_meanwhile(lane: Lane, cold: str) -> None:
    """What was read is of no use then, and not used."""
    with lane.pod("twice") as maker:
        one = worker(maker)
        checkpoint(lane, one, "name")
        one.remove()
        with lane.pod("late", annotations={SNAPSHOT: "name", **FAIL}) as pod:
            wait_until(lambda: engines(lane, pod), "an engine")
            lane.thaw("rm", "name")
            two = host_python(maker, WORKER, attempt=1).start()
            token = two.wait_for_log("booted").split()[1]
            checkpoint(lane, two, "name")
            restored = host_python(pod, WORKER).start()
            assert outcome(lane, restored).message == "restored"
            restored.exec(["/usr/bin/kill", "-USR1", "1"])
            assert restored.wait_for_log("token").split()[1] == token
    forget(lane, "name")


@pytest.mark.parametrize("name", ["absent", "../cold"])
def test_nothing_to_read(lane: Lane, name: str) -> None:
    with lane.pod("nothing", annotations={SNAPSHOT: name}) as pod:
        container = host_python(pod, WORKER).start()
        assert outcome(lane, container).message == "booting cold"
        container.wait_for_log("booted")
