"""All kinds of memory come back in a pod, page by page, under every setting of the engine.

The worker is the memory zoo (../memory/zoo.c). A picture of all its processes, taken from outside
before the dump, is compared with one after the restore; then it verifies itself and goes on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from bed.fetch import criu
from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane
from bed.pod import Container, Mount, Pod
from bench.bare import tree
from bench.disk import cool, files_below, warm
from gate import configured
from memory import zoo
from memory.compare import Process, differences, picture
from stored import path_of
from workers import FAIL, SNAPSHOT, checkpoint, init_pid, kept_snapshot, outcome, wait_until

pytestmark = [pytest.mark.one_lane]

_MIB = 1 << 20
# What may differ between two restores of the same: stacks, page tables, what the kernel batches.
_SLACK = 4 * _MIB
COMMAND = ["/zoo", "7", "/dev/shm", "/tmp"]
CACHE = {"warm": warm, "cold": cool}


class Taken(NamedTuple):
    """A snapshot of a zoo, and what that zoo was like."""

    name: str
    before: Mapping[int, Process]


class Use(NamedTuple):
    """Bytes that a container's memory cgroup counts, and the anonymous Pss of its processes."""

    all: int
    anonymous: int
    shared: int
    proportional: int


def create(pod: Pod) -> Container:
    mounts = [Mount(zoo.program(), "/zoo")]
    return pod.container("zoo", BUSYBOX_IMAGE, COMMAND, env=zoo.ENVIRONMENT, mounts=mounts)


def tell(lane: Lane, container: Container, how: signal.Signals, word: str) -> str:
    count = container.log().count(word)
    os.kill(init_pid(lane, container.id), how)
    wait_until(lambda: container.log().count(word) > count, f"{word!r} of the zoo")
    return zoo.last(container.log(), word)


def verify(lane: Lane, container: Container) -> list[str]:
    tell(lane, container, signal.SIGUSR1, "verified ")
    return zoo.complaints(container.log())


def go_on(lane: Lane, container: Container) -> str:
    return tell(lane, container, signal.SIGUSR2, "went on ")


@contextmanager
def taken(lane: Lane, name: str) -> Iterator[Taken]:
    """A snapshot of a zoo that has gone on once; it is not hurt by the dump."""
    pictures = []

    def make(pod: Pod) -> Container:
        container = create(pod).start()
        container.wait_for_log("booted")
        assert go_on(lane, container) == "went on 1 well"
        assert verify(lane, container) == []
        pictures.append(picture(init_pid(lane, container.id)))
        return container

    with kept_snapshot(lane, name, make):
        yield Taken(name, pictures[0])


@pytest.fixture(scope="module")
def snapshot(lane: Lane) -> Iterator[Taken]:
    with taken(lane, "zoo") as snapshot:
        yield snapshot


@contextmanager
def restored(lane: Lane, name: str, more: str) -> Iterator[Container]:
    """A zoo from a snapshot, restored with `more` in Thaw's configuration."""
    notes = {SNAPSHOT: name, **FAIL}
    with configured(lane, criu(), more), lane.pod(f"{name}-back", annotations=notes) as pod:
        container = create(pod).start()
        assert outcome(lane, container).message == "restored"
        yield container


def check_it_is_the_same(lane: Lane, container: Container, before: Mapping[int, Process]) -> None:
    assert differences(before, picture(init_pid(lane, container.id))) == []
    assert verify(lane, container) == []
    assert go_on(lane, container) == "went on 2 well"
    assert verify(lane, container) == []


def native(threads: int, memory: float) -> str:
    return f'[restore]\nengine = "native"\nthreads = {threads}\nmemory = {memory}\n'


PLAIN = '[restore]\nengine = "criu"\n'


# All of them meet in tests/unit/native/test_fill.py.
@pytest.mark.parametrize(
    ("threads", "memory", "cache"), [(1, 0.0, "cold"), (2, 0.01, "warm"), (5, 4.0, "cold")]
)
def test_every_page_is_what_it_was(
    lane: Lane, snapshot: Taken, threads: int, memory: float, cache: str
) -> None:
    CACHE[cache](files_below([path_of(lane, snapshot.name)]))
    with restored(lane, snapshot.name, native(threads, memory)) as container:
        assert outcome(lane, container).fields["memory"] == "native"
        check_it_is_the_same(lane, container, snapshot.before)


def test_plain_criu_restores_it_too(lane: Lane, snapshot: Taken) -> None:
    with restored(lane, snapshot.name, PLAIN) as container:
        assert outcome(lane, container).fields["memory"] == "criu"
        check_it_is_the_same(lane, container, snapshot.before)


@pytest.fixture(scope="module")
def plain(lane: Lane) -> Iterator[Taken]:
    """One that CRIU has dumped by itself."""
    with configured(lane, criu(), '[checkpoint]\nengine = "criu"\n'), taken(lane, "plain") as plain:
        yield plain


@pytest.mark.parametrize("engine", [native(0, 4.0), PLAIN], ids=["native", "criu"])
def test_what_plain_criu_dumped(lane: Lane, plain: Taken, engine: str) -> None:
    with restored(lane, plain.name, engine) as container:
        check_it_is_the_same(lane, container, plain.before)


def test_what_was_restored_is_dumped_and_restored_again(lane: Lane, snapshot: Taken) -> None:
    with restored(lane, snapshot.name, native(0, 4.0)) as container:
        assert verify(lane, container) == []
        before = picture(init_pid(lane, container.id))
        checkpoint(lane, container, "second")
        assert go_on(lane, container) == "went on 2 well"
    with restored(lane, "second", native(0, 4.0)) as container:
        check_it_is_the_same(lane, container, before)


def test_memory_is_charged_to_the_pod_and_stays_shared(lane: Lane, snapshot: Taken) -> None:
    """The same as with CRIU alone; less where zeros were dropped, which CRIU brings back."""
    uses = {}
    for name, engine in (("criu", PLAIN), ("native", native(0, 4.0))):
        with restored(lane, snapshot.name, engine) as container:
            uses[name] = use(init_pid(lane, container.id))
    stock, ours = uses["criu"], uses["native"]
    zeros = 64 * _MIB
    assert abs(ours.shared - stock.shared) < _SLACK, uses
    assert stock.anonymous - zeros < ours.anonymous < stock.anonymous + _SLACK, uses
    assert stock.proportional - zeros < ours.proportional < stock.proportional + _SLACK, uses
    # CRIU reads its images in the pod's cgroup, which then pays for their page cache, too.
    assert ours.all < stock.all + 4 * _SLACK, uses


def use(pid: int) -> Use:
    """What the cgroup of a process counts, and the anonymous Pss of all from it downwards."""
    folder, names = memory_cgroup(pid)
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return Use(
        all=int((folder / names[0]).read_text()),
        anonymous=int(stat[names[1]]),
        shared=int(stat["shmem"]),
        proportional=sum(proportional_size(each) for each in tree(pid)),
    )


def memory_cgroup(pid: int) -> tuple[Path, tuple[str, str]]:
    """The folder, and what version 1 or 2 calls usage and anonymous memory."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    paths = {
        kind: line.split(":", 2)[2] for line in lines for kind in line.split(":")[1].split(",")
    }
    if "memory" in paths:
        return Path(f"/sys/fs/cgroup/memory{paths['memory']}"), ("memory.usage_in_bytes", "rss")
    return Path(f"/sys/fs/cgroup{paths['']}"), ("memory.current", "anon")


def proportional_size(pid: int) -> int:
    """The anonymous Pss of a process in bytes; shared memory's depends on who has touched it."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) << 10
    raise LookupError(f"no Pss_Anon of {pid}")
