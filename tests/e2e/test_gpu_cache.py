"""The node's cache of GPU memory, through containerd: the second replica comes from there, and
whatever becomes of the process that holds it, replicas come. The driver is the tests' own."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest
from bed.lane import Installation
from bed.pod import Container, Pod
from fakes import gpu
from fakes.nvml import H100, machine
from gpus import GpuLane, ask, booted, removed, running
from stored import path_of
from workers import FAIL, SNAPSHOT, checkpoint, outcome, wait_until

from shim.cache import place

pytestmark = [pytest.mark.one_lane]

NAME = "cached"
MIB = 1 << 20
SIZE = 64 * MIB


class Holder:
    """The process, as the service manager would start it."""

    def __init__(self, shared: GpuLane) -> None:
        assert shared.installation is not None
        self._lane = shared
        config = str(shared.places.thaw_config)
        command = [str(shared.installation.bin / "python"), "-I", "-m", "shim.cache.holder"]
        self._process = subprocess.Popen([*command, "--config", config], env=shared.environment())
        self.pid = self._process.pid
        wait_until(self.answers, "the holder's first answer")

    def answers(self) -> bool:
        assert self._process.poll() is None
        return self._lane.thaw("cache", check=False).returncode == 0

    def end(self, number: int = signal.SIGTERM) -> int:
        self._process.send_signal(number)
        return self._process.wait(60)


@pytest.fixture(scope="module")
def shared(
    installation: Installation | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GpuLane]:
    """With one GPU, and room for a cache."""
    if installation is None or not (installation.bin / "python").exists():
        pytest.skip("needs the product to be installed")
    shared = GpuLane(installation, tmp_path_factory.mktemp("gpu"))
    with open(shared.places.thaw_config, "a") as file:
        file.write(f"cache.size = {SIZE / (1 << 30)}\n")
    shared.nvml.has(machine(H100))
    gpu.build(shared.cuda.folder, "entry")
    with running(shared):
        yield shared


@pytest.fixture(scope="module")
def holders(shared: GpuLane) -> Iterator[list[Holder]]:
    """Those that were started; the last one runs."""
    made = [Holder(shared)]
    yield made
    assert made[-1].end() == 0
    place.remove(shared.places.thaw_state / "cache")


def sums(container: Container) -> list[str]:
    return [ask(container, "sum", number) for number in ("1", "2")]


@pytest.fixture(scope="module")
def before(shared: GpuLane, holders: list[Holder]) -> list[str]:
    """Sums of the memory of which there is a snapshot."""
    with shared.pod("cold") as pod:
        container = booted(shared.program(pod).start())
        for number, size in (("1", "4M"), ("2", "8M")):
            ask(container, "alloc", size)
            ask(container, "fill", number, number)
        found = sums(container)
        checkpoint(shared, container, NAME)
    return found


@pytest.fixture(scope="module")
def strict(shared: GpuLane, before: list[str]) -> Iterator[Pod]:
    """A pod whose worker is restored or nothing."""
    with shared.pod("strict", annotations={SNAPSHOT: NAME, **FAIL}) as pod:
        yield pod


def restored(shared: GpuLane, pod: Pod, before: list[str]) -> bool:
    """Whether a replica came from the cache; in any case it has what it should have."""
    with removed(shared.program(pod).start()) as container:
        line = outcome(shared, container)
        assert line.message == "restored"
        assert sums(container) == before
        return "from=cache" in line.fields["gpu"]


def cached(shared: GpuLane) -> list[str]:
    """The folders of snapshots that are in it."""
    said = json.loads(shared.thaw("cache", "-o", "json").stdout)
    return [account["path"] for account in said["snapshots"]]


def test_the_second_replica_comes_from_there(
    shared: GpuLane, strict: Pod, before: list[str]
) -> None:
    assert cached(shared) == []
    assert not restored(shared, strict, before)
    wait_until(lambda: cached(shared) == [str(path_of(shared, NAME))], "it to be read in")
    assert restored(shared, strict, before)
    assert NAME in shared.thaw("cache").stdout


def test_ahead_of_time(shared: GpuLane, strict: Pod, before: list[str]) -> None:
    shared.thaw("warm", NAME)
    shared.thaw("cache", "--drop", NAME)
    assert cached(shared) == []
    assert f"{NAME}: in the cache (12.0 MiB in " in shared.thaw("warm", NAME).stdout
    assert restored(shared, strict, before)


def test_the_holder_is_killed(
    shared: GpuLane, holders: list[Holder], strict: Pod, before: list[str]
) -> None:
    """Replicas come without it, and what it had is there for the next one."""
    shared.thaw("warm", NAME)
    assert holders[-1].end(signal.SIGKILL) == -signal.SIGKILL
    assert not restored(shared, strict, before)
    holders.append(Holder(shared))
    assert cached(shared) == [str(path_of(shared, NAME))]
    assert restored(shared, strict, before)


def test_a_holder_that_dies_over_it(
    shared: GpuLane, holders: list[Holder], strict: Pod, before: list[str]
) -> None:
    """The replica gets other memory, filled from the files."""
    shared.thaw("warm", NAME)
    pid = holders[-1].pid
    shared.cuda.trace()
    with shared.cuda.held("cuEventSynchronize", pid), removed(shared.program(strict)) as container:
        starting = container.starting()
        wait_until(lambda: ("cuEventSynchronize", pid) in shared.cuda.traced, "the holder's copy")
        holders[-1].end(signal.SIGKILL)
        starting.result()
        line = outcome(shared, container)
        assert line.message == "restored"
        assert "from=cache" not in line.fields["gpu"]
        assert sums(container) == before
    holders.append(Holder(shared))
