"""GPU memory that is moved past the driver, through containerd: the driver is the tests' own, all
else is the product. A worker's memory is known by its sums."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from bed.fetch import criu
from bed.images import HOST_IMAGE
from bed.lane import Installation
from bed.pod import Container, Pod
from fakes import gpu
from fakes.cuda import PASS
from fakes.nvml import H100, machine
from gate import configured, gate
from gpus import PORT, GpuLane, ask, booted, device, removed, running
from stored import path_of
from workers import (
    FAIL,
    PYTHON,
    SNAPSHOT,
    USR,
    awaited_lines,
    checkpoint,
    children,
    outcome,
    shim_lines,
    shim_pid,
    wait_until,
)

pytestmark = [pytest.mark.one_lane]

NAME = "moved"
MIB = 1 << 20
OUT_OF_MEMORY = 2
UNFIT = 7  # the exit status of `thaw`
INSIDE = 1  # the worker, as it calls itself
# What a worker has: large in both ways, one of them all zeros; and what stays with the driver.
MADE = ("alloc 4M", "create 8M", "alloc 2M", "alloc 64K")
MOVED, STORED = 14 * MIB, 12 * MIB


@pytest.fixture(scope="module")
def shared(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GpuLane]:
    """The lane of all these tests, with one GPU."""
    if installation is None:
        pytest.skip("needs the product to be installed")
    lane = GpuLane(installation, tmp_path_factory.mktemp("gpu"))
    lane.nvml.has(machine(H100))
    gpu.build(lane.cuda.folder, "entry")
    with running(lane):
        yield lane


@pytest.fixture
def lane(shared: GpuLane) -> GpuLane:
    """It, with a driver that does what it is asked for."""
    shared.cuda.reset()
    return shared


@pytest.fixture(scope="module")
def home(shared: GpuLane) -> Iterator[Pod]:
    """The pod in which workers boot cold."""
    with shared.pod("cold") as pod:
        yield pod


def filled(container: Container, port: str = PORT) -> Container:
    """With all that MADE says in it."""
    booted(container)
    for number, command in enumerate(MADE, 1):
        ask(container, *command.split(), port=port)
        fill = f"fill {number} {number}" if number != 3 else "set 3 0"
        ask(container, *fill.split(), port=port)
    return container


def sums(container: Container, port: str = PORT) -> list[str]:
    return [ask(container, "sum", str(number + 1), port=port) for number in range(len(MADE))]


class Made(NamedTuple):
    """The worker, what it has, and what was seen when the snapshot was made of it."""

    container: Container
    sums: list[str]
    said: dict[str, str]


@pytest.fixture(scope="module")
def snapshot(shared: GpuLane, home: Pod) -> Made:
    shared.cuda.reset()
    container = filled(shared.program(home).start())
    before = sums(container)
    checkpoint(shared, container, NAME)
    return Made(container, before, told_once(shared, container, "GPU memory dumped"))


def told_once(lane: GpuLane, container: Container, message: str) -> dict[str, str]:
    """The fields of the one such line in the shim's log."""
    [line] = awaited_lines(lane, container.id, message)
    return dict(line.fields)


def refused(lane: GpuLane, container: Container, status: int = 1) -> str:
    """What `thaw checkpoint` says that must not make a snapshot."""
    done = lane.checkpointing(container, "none").result()
    assert done.returncode == status, done
    return str(done.stderr)


@pytest.fixture(scope="module")
def strict(shared: GpuLane, snapshot: Made) -> Iterator[Pod]:
    """A pod whose worker is restored or nothing."""
    with shared.pod("strict", annotations={SNAPSHOT: NAME, **FAIL}) as pod:
        yield pod


@contextmanager
def fallible(lane: GpuLane) -> Iterator[Container]:
    """A worker that boots cold if it cannot be restored, in a pod of its own.

    Its GPU memory is made and filled from the sandbox on: what is to go wrong must be there before.
    """
    with (
        lane.pod("fallible", annotations={SNAPSHOT: NAME}) as pod,
        removed(lane.program(pod).start()) as container,
    ):
        yield container


def test_a_snapshot(lane: GpuLane, snapshot: Made) -> None:
    """The worker goes on with what it had, and the snapshot has it, too, without its zeros."""
    assert sums(snapshot.container) == snapshot.sums
    folder = path_of(lane, NAME)
    document = json.loads((folder / "config.json").read_text())
    [process] = document["gpu"]["processes"]
    assert [region["size"] for region in process["regions"]] == [4 * MIB, 8 * MIB, 2 * MIB]
    assert (process["reason"], sorted(process["left"])) == ("", ["small"])
    assert document["pages"]["gpu-1.img.0000"] == STORED
    assert snapshot.said["gib"] == f"{MOVED / (1 << 30):.3f}"
    assert "by us; by the driver 64.0 KiB small" in lane.thaw("show", NAME).stdout
    lane.thaw("verify", NAME)
    spans = [span["name"] for span in document["spans"]]
    assert {"hold", "export", "empty", "scan", "copy"} <= set(spans)


def test_restored_and_again(lane: GpuLane, snapshot: Made, strict: Pod) -> None:
    """In a pod of its own, and from a snapshot of that one, too."""
    with removed(lane.program(strict).start()) as container:
        line = outcome(lane, container)
        assert line.message == "restored"
        assert "give=" in line.fields["gpu"]
        assert sums(container) == snapshot.sums
        ask(container, "fill", "1", "77")
        other = sums(container)
        assert other[1:] == snapshot.sums[1:]
        checkpoint(lane, container, "again")
        assert sums(container) == other
    with lane.pod("again", annotations={SNAPSHOT: "again", **FAIL}) as pod:
        container = lane.program(pod).start()
        assert sums(container) == other
        ask(container, "alloc", "2M")
        ask(container, "free", "2")


def test_another_container_has_the_gpu_first(lane: GpuLane, snapshot: Made) -> None:
    """With all of its memory: what was taken with the sandbox is let go, and taken again later."""
    lane.cuda.trace()
    notes = {f"{SNAPSHOT}.app": NAME, **FAIL}
    with lane.pod("both", annotations=notes) as pod:
        pieces = len(MADE) - 1
        wait_until(lambda: lane.cuda.count("cuMemCreate") >= pieces, "memory for the restore")
        let_go = lane.cuda.count("cuMemRelease")
        with removed(first(lane, pod).start()):
            wait_until(
                lambda: lane.cuda.count("cuMemRelease") >= let_go + pieces, "it to be let go"
            )
        container = lane.program(pod).start()
        assert outcome(lane, container).message == "restored"
        assert sums(container) == snapshot.sums
    assert lane.cuda.count("cuMemCreate") >= 2 * pieces


def first(lane: GpuLane, pod: Pod) -> Container:
    """A container with the same GPU, before the worker."""
    words = [PYTHON, "-ISuc", "input()"]
    return pod.container("first", HOST_IMAGE, words, mounts=[USR], devices=[device(lane.node)])


def test_through_a_file(lane: GpuLane, snapshot: Made, tmp_path: Path) -> None:
    """A snapshot that was exported and imported has all of it."""
    lane.thaw("export", NAME, str(tmp_path / "one.tar"))
    lane.thaw("import", str(tmp_path / "one.tar"), "carried")
    with lane.pod("carried", annotations={SNAPSHOT: "carried", **FAIL}) as pod:
        assert sums(lane.program(pod).start()) == snapshot.sums


def test_tried_before_it_is_published(lane: GpuLane, home: Pod) -> None:
    """Beside its original, with memory of its own."""
    with (
        configured(lane, criu(), f'{lane.more}checkpoint.verify = "restore"\n'),
        removed(lane.program(home, "7004")) as container,
    ):
        before = sums(filled(container.start(), "7004"), "7004")
        checkpoint(lane, container, "tried")
        assert sums(container, "7004") == before
    document = json.loads((path_of(lane, "tried") / "config.json").read_text())
    assert document["verified"] == "restored"


# -- what is left to the driver --------------------------------------------------------------------


def test_the_library_takes_nothing_over(lane: GpuLane, home: Pod) -> None:
    """Then the driver has all of it, and the reason is said."""
    plain = lane.program(home, "7001", THAW_GPU_MEMORY="driver")
    with removed(plain.start()) as container:
        before = sums(filled(container, "7001"), "7001")
        checkpoint(lane, container, "plain")
        assert sums(container, "7001") == before
        line = told_once(lane, container, "GPU memory dumped")
        assert line["driver"] == "1: THAW_GPU_MEMORY=driver in its environment"
    assert "all by the driver: THAW_GPU_MEMORY=driver" in lane.thaw("show", "plain").stdout
    with lane.pod("plain", annotations={SNAPSHOT: "plain", **FAIL}) as pod:
        again = lane.program(pod, "7001", THAW_GPU_MEMORY="driver").start()
        assert sums(again, "7001") == before


def test_memory_of_others_is_refused(lane: GpuLane, home: Pod) -> None:
    with removed(lane.program(home, "7002").start()) as container:
        before = sums(filled(container, "7002"), "7002")
        ask(container, "import", "4M", port="7002")
        assert "has GPU memory of another process mapped" in refused(lane, container, UNFIT)
        assert lane.cuda.asked() == [], "it was known before anything was touched"
        assert sums(container, "7002") == before


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "inside"),
    [
        ("cuMemExportToShareableHandle", True),
        ("cuMemUnmap", True),
        ("cuMemImportFromShareableHandle", False),
        ("cuMemcpyDtoHAsync_v2", False),
        ("Lock", False),
        ("Checkpoint", False),
    ],
)
def test_a_snapshot_fails(lane: GpuLane, snapshot: Made, call: str, inside: bool) -> None:
    """At whatever, in the worker or in the engine: the worker goes on with what it had."""
    if inside:
        # What cannot be exported is put elsewhere first, but for lack of room.
        lane.cuda.answer(call, OUT_OF_MEMORY, pid=INSIDE)
    else:
        if call.startswith("cu"):
            lane.cuda.answer(call, PASS, pid=INSIDE, always=True)
        lane.cuda.answer(call, 999, always=True)
    assert call.removesuffix("_v2") in refused(lane, snapshot.container)
    lane.cuda.reset()
    assert sums(snapshot.container) == snapshot.sums


@pytest.mark.parametrize("call", ["cuMemCreate", "cuMemcpyHtoDAsync_v2", "Restore"])
def test_a_restore_fails(lane: GpuLane, snapshot: Made, call: str) -> None:
    """Its container boots cold."""
    if call.startswith("cu"):
        lane.cuda.answer(call, PASS, pid=INSIDE, always=True)
    lane.cuda.answer(call, OUT_OF_MEMORY, always=True)
    with fallible(lane) as container:
        line = outcome(lane, container)
        assert (line.message, line.fields["reason"]) == ("booting cold", "GpuFailed")
        assert call.removesuffix("_v2") in line.fields["error"]
        lane.cuda.reset()
        filled(container)
        assert sums(container) == snapshot.sums


def test_a_flipped_byte(lane: GpuLane, snapshot: Made) -> None:
    """It is seen before anything of it is used."""
    [path] = path_of(lane, NAME).glob("pages/gpu-1.img.0000")
    with open(path, "r+b") as file:
        file.seek(5 * MIB)
        byte = file.read(1)
        file.seek(5 * MIB)
        file.write(bytes([byte[0] ^ 1]))
    with fallible(lane) as container:
        line = outcome(lane, container)
        assert (line.message, line.fields["reason"]) == ("booting cold", "Damaged")
        assert "gpu-1.img.0000" in line.fields["error"]
    damaged = lane.thaw("verify", NAME, check=False)
    assert "gpu-1.img.0000" in damaged.stdout + damaged.stderr
    with open(path, "r+b") as file:
        file.seek(5 * MIB)
        file.write(byte)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_an_engine_is_killed_with_the_memory(lane: GpuLane, home: Pod, kept: bool) -> None:
    """Another process has it, too: the worker goes on with what it had. If that one was killed as
    well, the container is ended, and says why."""
    container = lane.program(home, "7003")
    with gate(lane, "pre-dump", lane.more) as held, removed(container):
        before = sums(filled(container.start(), "7003"), "7003")
        making = lane.checkpointing(container, "none")
        held.wait()
        shim = shim_pid(lane, container.id)
        [own] = children(shim, "shim/engine.py")
        [keeper] = children(own, "thaw-gpu-keeper")
        for pid in [own] if kept else [own, keeper]:
            os.kill(pid, signal.SIGKILL)
        held.open()
        assert making.result().returncode == 1
        lane.thaw("gc")
        lost = "a worker is lost over its snapshot"
        if kept:
            assert sums(container, "7003") == before
            assert lost not in [line.message for line in shim_lines(lane, container.id)]
            wait_until(lambda: not children(shim, "thaw-gpu-keeper"), "the keeper's end")
        else:
            assert container.wait() == 128 + signal.SIGKILL
            assert "has lost its GPU memory" in told_once(lane, container, lost)["error"]
