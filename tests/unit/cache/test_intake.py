"""Reading snapshots in: nothing is believed, and of what fails nothing stays."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.regions import MIB, pattern
from fakes.settled import eventually
from fakes.snapshots import make

from shim.cache import intake
from shim.cache.intake import Intake
from shim.cache.store import Store
from shim.errors import Cancelled, Damaged, Unfit
from shim.snapshot import store as snapshots
from shim.snapshot.pieces import open_source
from shim.snapshot.snapshot import Snapshot

from .conftest import SEGMENT, Saved, cache_in, content, taken


def piece(snapshot: Snapshot) -> Path:
    return snapshot.piece("gpu-1.img.0000")


def nothing_stays(cache: Store) -> None:
    assert cache.accounts()[2:] == (0, 0, [])
    assert all(segment.free.whole for segment in cache.segments.values())
    assert list(cache.records_folder.iterdir()) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5 * MIB] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (flip, r"gpu-1\.img\.0000 at 4194304 .* has another checksum"),
        (lambda path: path.write_bytes(b""), "it had"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_damage_is_found(
    cache: Store, save: Saved, spoil: Callable[[Path], None], words: str
) -> None:
    snapshot = save("one", ("x" * 120, 1))
    spoil(piece(snapshot))
    with pytest.raises(Damaged, match=words):
        taken(cache, snapshot)
    nothing_stays(cache)


def test_one_that_is_cut_off_meanwhile(
    cache: Store, save: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = save("one", ("x" * 120, 1))

    def cut(path: Path, size: int) -> int:
        fd = open_source(path, size)
        os.truncate(path, 5 * MIB - 100)
        return fd

    monkeypatch.setattr(intake, "open_source", cut)
    with pytest.raises(Damaged, match="is cut off"):
        taken(cache, snapshot)
    nothing_stays(cache)


def test_a_file_system_that_wants_a_page_cache(
    cache: Store, save: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.preadv, []

    def refuse(fd: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(fd)
            raise OSError(22, "not so")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse)
    key = taken(cache, save("one", ("x" * 120, 1)))
    assert content(cache, key) == [pattern("x" * 120, 1)]


def test_no_room_to_write_down_what_it_has(
    cache: Store, save: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(path: Path, data: bytes) -> int:
        with open(path, "wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "full")

    snapshot = save("one", ("x" * 120, 1))
    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(OSError, match="full"):
        taken(cache, snapshot)
    nothing_stays(cache)


def test_it_can_be_given_up(cache: Store, save: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Intake.of(save("one", ("x" * 120, 1)))
    go_on = threading.Event()
    read, began = intake._read, threading.Event()

    def wait(fd: int, offset: int, view: memoryview) -> bool:
        began.set()
        assert go_on.wait(60)
        return read(fd, offset, view)

    monkeypatch.setattr(intake, "_read", wait)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            reading.run(cache, 1)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    eventually(began.is_set)
    reading.cancel()
    go_on.set()
    thread.join()
    assert [type(failure) for failure in failures] == [Cancelled]
    nothing_stays(cache)


def test_several_at_the_same_time(tmp_path: Path, save: Saved) -> None:
    """What they share is there once, whoever was first."""
    cache = cache_in(tmp_path / "large", 16 * SEGMENT)
    shared = [("x" * 48, 1), ("x" * 40, 2)]
    found = [save(f"s{n}", *shared, (f"{'1' * (n + 1)}", n)) for n in range(4)]
    threads = [threading.Thread(target=taken, args=(cache, snapshot)) for snapshot in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accounts = cache.accounts()
    assert len(accounts.snapshots) == 4
    assert accounts.used == (48 + 40 + 1 + 2 + 3 + 4) * (64 << 10)
    cache.close()


def test_a_snapshot_without_gpu_memory(stores: snapshots.Store) -> None:
    with pytest.raises(Unfit, match="has no GPU memory that could be in the cache"):
        Intake.of(stores.snapshot(make(stores, "plain")))
