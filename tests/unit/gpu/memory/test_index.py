"""Where GPU memory lies in a snapshot: what was written is read, and nothing else is believed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.snapshots import CONFIG, write

from shim._native import lib
from shim.errors import Damaged
from shim.gpu.memory import index
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.cuda import CudaProcess, CudaState, GpuRegion
from shim.snapshot.snapshot import Snapshot

from .conftest import GPU, MIB

EXTENT = struct.Struct("<QQIIIHH")
PIECES = ["gpu-1.img.0000", "gpu-1.img.0001"]


def extent(
    region: int = 0, address: int = 0, offset: int = 0, length: int = 4096, source: int = 0
) -> bytes:
    return EXTENT.pack(address, offset, length, 0, region, source, 1)


def config_of(sizes: list[int], pieces: dict[str, int]) -> SnapshotConfig:
    """One process with regions of these sizes, and one with none."""
    regions = [GpuRegion(n + 1, size, 0, GPU.uuid) for n, size in enumerate(sizes)]
    state = CudaState([CudaProcess(1), CudaProcess(7, [], regions)], [GPU.uuid])
    return replace(CONFIG, gpu=state, pages={**CONFIG.pages, **pieces})


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """Two regions in two pieces."""
    pieces = dict.fromkeys(PIECES, 8192)
    folder = write(tmp_path / "one", config_of([2 * MIB, 4 * MIB], pieces))
    (folder / "index").mkdir(exist_ok=True)
    return Snapshot(folder)


def test_as_it_was_written(snapshot: Snapshot) -> None:
    extents = extent() + extent(1, 4 * MIB - 4096, 0, source=1)
    index.write(snapshot.index, extents)
    found = index.stored(snapshot)
    assert found is not None
    assert (found.extents, found.count, found.bytes) == (extents, 2, 8192)
    assert [source.name for source in found.sources] == PIECES
    assert found.paths == [snapshot.piece(name) for name in PIECES]
    assert found.regions == [2 * MIB, 4 * MIB]


def test_in_the_order_of_numbers(tmp_path: Path) -> None:
    names = [f"gpu-{n}.img.{m:04d}" for n in (1, 2, 10) for m in (0, 1)]
    folder = write(tmp_path / "one", config_of([2 * MIB], dict.fromkeys(reversed(names), 4096)))
    index.write(folder / "index", b"")
    found = index.stored(Snapshot(folder))
    assert found is not None
    assert [source.name for source in found.sources] == names


def test_a_snapshot_without(tmp_path: Path) -> None:
    assert index.stored(Snapshot(write(tmp_path / "one"))) is None


def test_nothing_but_zeros(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", config_of([2 * MIB], {}))
    index.write(folder / "index", b"")
    found = index.stored(Snapshot(folder))
    assert found is not None
    assert (found.count, found.bytes, found.sources) == (0, 0, [])


@pytest.mark.parametrize(
    ("extents", "words"),
    [
        (extent(2), "a task or a file that is not listed"),
        (extent(source=2), "a task or a file that is not listed"),
        (extent(address=2 * MIB), "outside its region"),
        (extent(address=2 * MIB - 4096, length=8192), "outside its region|crosses"),
        (extent(offset=8192), "outside its file"),
        (extent(offset=100), "whole pages"),
        (extent() + extent(offset=4096), "overlap"),
        (extent() + extent(address=4096), "overlap"),
        (extent(source=1) + extent(address=4096), "out of order"),
    ],
)
def test_extents_that_cannot_be(snapshot: Snapshot, extents: bytes, words: str) -> None:
    index.write(snapshot.index, extents)
    with pytest.raises(Damaged, match=words):
        index.stored(snapshot)


def other(data: bytes, place: int, value: bytes) -> bytes:
    """With another header, and the checksum that it should have."""
    changed = data[:place] + value + data[place + len(value) :]
    return changed[:20] + lib.thaw_crc32c(0, changed[:20], 20).to_bytes(4, "little") + changed[24:]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:10], "cut off"),
        (lambda data: data[:3] + b"x" + data[4:], "header has another checksum"),
        (lambda data: data[:-1] + b"x", "another checksum"),
        (lambda data: data[:-32], "another checksum"),
        (lambda data: other(data, 0, b"OTHER"), "another format"),
        (lambda data: other(data, 8, b"\2"), "another format"),
        (lambda data: other(data, 12, b"\2"), "another checksum"),
    ],
)
def test_another_file(snapshot: Snapshot, spoil: Callable[[bytes], bytes], words: str) -> None:
    index.write(snapshot.index, extent())
    path = snapshot.index / "gpu"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(Damaged, match=words):
        index.stored(snapshot)


def test_it_is_not_there(snapshot: Snapshot) -> None:
    with pytest.raises(Damaged, match="No such file"):
        index.stored(snapshot)


def test_a_link(snapshot: Snapshot, tmp_path: Path) -> None:
    (snapshot.index / "gpu").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Damaged):
        index.stored(snapshot)
