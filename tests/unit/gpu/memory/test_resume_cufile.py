"""A restore and cuFile: it fills GPU memory, or the engine does, and always with the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.cufile import FakeCufile
from fakes.gpu_snapshots import saved
from fakes.nvml import H100, numbered
from fakes.regions import content, pattern
from fakes.settled import eventually, own_threads

from shim.errors import Damaged, GpuFailed
from shim.gpu.memory import cufile as module
from shim.gpu.memory import resume
from shim.gpu.memory.cufile import Storage
from shim.gpu.memory.device import Memory
from shim.gpu.memory.index import stored
from shim.gpu.memory.resume import Refill
from shim.snapshot import store as snapshots
from shim.snapshot.snapshot import Snapshot

WANTED = [pattern("x" * 48, 1), pattern("1.x" * 20, 3)]
FIRST, SECOND = numbered(H100, 0).uuid, numbered(H100, 1).uuid
HERE = {FIRST: FIRST, SECOND: SECOND}
OUT_OF_MEMORY = 2


@pytest.fixture
def fake(gpus: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCufile]:
    """In its compatibility mode. No thread stays, and it is closed."""
    (tmp_path / "modules").touch()
    monkeypatch.setattr(module, "MODULES", str(tmp_path / "modules"))
    gpus.reset()
    gpus.trace()
    before = own_threads()
    yield (made := FakeCufile(gpus))
    gpus.reset()
    (gpus.folder / "flipped").unlink(missing_ok=True)
    assert not made.is_open
    eventually(lambda: own_threads() <= before)


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """With memory on two GPUs."""
    return saved(snapshots.Store(tmp_path / "store"), "one", WANTED, [0, 1])


def refill_of(snapshot: Snapshot, gpus: FakeCuda, fake: FakeCufile) -> Refill:
    found = stored(snapshot)
    assert found is not None
    storage = Storage("cufile", fake.library)
    memory = lambda: Memory.open(gpus.library)  # noqa: E731
    return Refill(memory, found, snapshot.config.gpu, None, storage)


def filled(refill: Refill) -> list[bytes]:
    """What there is in the end; nobody gets it."""
    refill.prefetch()
    refill.begin(HERE)
    refill.give({})
    return [content(region) for region in refill._all().regions]


def test_by_cufile(gpus: FakeCuda, fake: FakeCufile, snapshot: Snapshot) -> None:
    """The engine reads nothing itself, also not ahead."""
    refill = refill_of(snapshot, gpus, fake)
    assert filled(refill) == WANTED
    figures = refill.figures()
    assert (figures.direct, figures.refused) == (True, "")
    assert gpus.count("cuMemcpyHtoDAsync_v2") == 0
    assert refill._copy is not None
    assert refill._copy.progress().direct == refill._copy.progress().cached == 0
    refill.close()


@pytest.mark.parametrize(
    ("call", "result", "words"),
    [
        ("cuFileDriverOpen", 5033, "cuFileDriverOpen: NVFS_SETUP_ERROR (5033)"),
        ("cuFileHandleRegister", 5008, "cuFileHandleRegister: IO_NOT_SUPPORTED (5008)"),
        ("cuFileRead", 5011, "cuFileRead: CUDA_DRIVER_ERROR (5011)"),
        ("cuFileRead", 5, "Input/output error"),
    ],
)
def test_by_the_engine_if_that_fails(
    gpus: FakeCuda, fake: FakeCufile, snapshot: Snapshot, call: str, result: int, words: str
) -> None:
    fake.answer(call, result)
    refill = refill_of(snapshot, gpus, fake)
    assert filled(refill) == WANTED
    figures = refill.figures()
    assert not figures.direct
    assert words in figures.refused
    refill.close()


def test_by_the_engine_if_the_gpu_cannot_sum_up(
    gpus: FakeCuda, fake: FakeCufile, snapshot: Snapshot
) -> None:
    gpus.answer("cuLaunchKernel", 209, always=True)
    refill = refill_of(snapshot, gpus, fake)
    assert filled(refill) == WANTED
    assert "cuLaunchKernel" in refill.figures().refused
    refill.close()


def test_a_byte_that_flips_on_the_way(gpus: FakeCuda, fake: FakeCufile, snapshot: Snapshot) -> None:
    """The file is as it was: who reads it well gets it, in memory that nobody else has had."""
    fake.is_so("flipped")
    refill = refill_of(snapshot, gpus, fake)
    assert filled(refill) == WANTED
    assert "has another checksum" in refill.figures().refused
    assert gpus.count("cuMemCreate") == 2 * len(WANTED)
    refill.close()


def test_a_flipped_byte_in_the_file(gpus: FakeCuda, fake: FakeCufile, snapshot: Snapshot) -> None:
    """Both find it, and nobody gets anything."""
    path = snapshot.piece("gpu-1.img.0001")
    data = bytearray(path.read_bytes())
    data[100_000] ^= 1
    path.write_bytes(data)
    refill = refill_of(snapshot, gpus, fake)
    with pytest.raises(Damaged, match="checksum"):
        filled(refill)
    assert "has another checksum" in refill.figures().refused
    refill.close()


def test_no_room_for_other_memory(
    gpus: FakeCuda, fake: FakeCufile, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "_ROOM", 0.0)
    fake.answer("cuFileRead", 5)
    refill = refill_of(snapshot, gpus, fake)
    with fake.held("cuFileRead"):
        refill.begin(HERE)
        refill.made()
        eventually(lambda: gpus.count("cuFileRead"))
        gpus.answer("cuMemCreate", OUT_OF_MEMORY, always=True)
    with pytest.raises(GpuFailed, match="OUT_OF_MEMORY"):
        refill.give({})
    refill.close()


def test_given_up_half_way(gpus: FakeCuda, fake: FakeCufile, snapshot: Snapshot) -> None:
    """Before anything, while it is prepared, and while cuFile reads."""
    for prefetch, begin in [(False, False), (True, False), (True, True)]:
        refill = refill_of(snapshot, gpus, fake)
        if prefetch:
            refill.prefetch()
        with fake.held("cuFileRead"):
            if begin:
                refill.begin(HERE)
                eventually(lambda: gpus.count("cuFileRead"))
        refill.close()
        assert not fake.is_open
