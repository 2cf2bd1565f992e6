"""A cache in small segments, and snapshots that it may have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu_snapshots import saved
from fakes.regions import MIB, pattern, three_gpus
from fakes.settled import PATIENCE, eventually, own_threads

from shim.cache import client
from shim.cache.intake import Intake
from shim.cache.store import Store
from shim.config import Config
from shim.snapshot import store as snapshots
from shim.snapshot.snapshot import Snapshot

SEGMENT = 4 * MIB
Saved = Callable[..., Snapshot]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may be late: a restore goes on without the cache then, and these tests do not."""
    monkeypatch.setattr(client, "_ASKING", PATIENCE)
    monkeypatch.setattr(client, "_FILLING", PATIENCE)


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCuda]:
    """One for all tests of a module, with three GPUs."""
    with three_gpus(tmp_path_factory.mktemp("cuda")) as made:
        yield made


@pytest.fixture
def nobody_is_left(cuda: FakeCuda) -> Iterator[None]:
    """No thread stays; the driver does what it is asked for, before and after."""
    cuda.reset()
    before = own_threads()
    yield
    cuda.reset()
    eventually(lambda: own_threads() <= before)


@pytest.fixture
def config(tmp_path: Path, cuda: FakeCuda) -> Config:
    """A node with a cache of three segments."""
    cuda.reset()
    return Config(
        {
            "state": str(tmp_path),
            "snapshots": str(tmp_path / "snapshots"),
            "gpu.library": cuda.library,
            "cache.size": 3 * SEGMENT / (1 << 30),
        }
    )


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Store]:
    """It has room for three segments."""
    made = cache_in(tmp_path / "cache")
    yield made
    made.close()


def cache_in(folder: Path, size: int = 3 * SEGMENT) -> Store:
    return Store(folder, size, segment=SEGMENT, free=lambda: 1 << 40)


@pytest.fixture
def stores(tmp_path: Path) -> snapshots.Store:
    """The node's snapshots."""
    return snapshots.Store(tmp_path / "snapshots")


@pytest.fixture
def save(stores: snapshots.Store) -> Saved:
    """Makes a snapshot of that name with regions of these patterns (fakes.regions) and seeds."""

    def make(name: str, *regions: tuple[str, int]) -> Snapshot:
        return saved(stores, name, [pattern(marks, seed) for marks, seed in regions])

    return make


def taken(cache: Store, snapshot: Snapshot, *, idle: float = 0.0) -> str:
    """Have it read in; its key."""
    intake = Intake.of(snapshot, idle=idle)
    intake.run(cache, 3)
    assert intake.done in (0, intake.total)
    return intake.key


def content(cache: Store, key: str) -> list[bytes]:
    """Its regions, as far as the cache has something of them: zeros otherwise."""
    with cache.using(key) as record:
        assert record is not None
        regions = [bytearray(size) for size in record.regions]
        memory = cache.memory(record)
        for extent in (record.extents[at : at + 32] for at in _starts(record)):
            address, place, length = (
                int.from_bytes(extent[at:end], "little") for at, end in ((0, 8), (8, 16), (16, 20))
            )
            task, segment = (
                int.from_bytes(extent[at:end], "little") for at, end in ((24, 28), (28, 30))
            )
            regions[task][address : address + length] = memory[segment][place : place + length]
    return [bytes(region) for region in regions]


def _starts(record: object) -> range:
    return range(0, len(getattr(record, "extents")), 32)  # noqa: B009
