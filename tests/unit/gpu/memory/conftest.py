"""Processes with GPU memory, and an engine that moves it; the driver is the tests' own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu_peer import Peer
from fakes.nvml import H100, numbered
from fakes.regions import Machine, machine_of, three_gpus

from shim.gpu.memory.device import Memory

MIB = 1 << 20
GPU = numbered(H100, 0)


@pytest.fixture
def memory(cuda: FakeCuda) -> Iterator[Memory]:
    """The engine's own."""
    made = Memory.open(cuda.library)
    yield made
    made.close()


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCuda]:
    """A driver with three of them, for all tests of a module."""
    with three_gpus(tmp_path_factory.mktemp("cuda")) as made:
        yield made


@pytest.fixture
def machine(gpus: FakeCuda) -> Iterator[Machine]:
    with machine_of(gpus) as made:
        yield made


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    """Two processes; the second has nothing but zeros in its only piece."""
    uuids = [GPU.uuid_bytes]
    with Peer([4 * MIB, 2 * MIB], uuids) as one, Peer([2 * MIB], uuids) as other:
        one.write(0, 100_000, b"first")
        one.write(1, 2 * MIB - 5, b"other")
        yield [one, other]


def digests(peers: list[Peer]) -> list[list[str]]:
    """Of what each has."""
    return [peer.digest for peer in peers]


def states(peers: list[Peer]) -> list[int]:
    return [peer.state for peer in peers]
