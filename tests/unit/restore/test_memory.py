"""Memory filled into real processes, and every way in which that is refused."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fakes.host import open_fds
from fakes.images import BASE, LARGE, noise, single
from fakes.settled import eventually, own_threads
from fakes.snapshots import config, write

from shim._native import lib
from shim.budget import GIB
from shim.config import Config
from shim.errors import Damaged, RestoreFailed, ThawError, Unfit
from shim.restore.bulk import NO_INDEX, SWITCHED_OFF, Memory, ReadAhead
from shim.restore.memory import Filling, _readers, writable_ranges
from shim.snapshot.cuda import CudaProcess, CudaState, Staging
from shim.snapshot.index import Document, Index
from shim.snapshot.indexing import make
from shim.snapshot.layout import Blob
from shim.snapshot.pieces import Pieces, name_of

PAGE = 4096
SIZE = 8 << 20
PIECE = 1 << 20
NAME = "pages-1.img"
TARGET = f"""\
import ctypes, mmap, signal, sys
area = mmap.mmap(-1, {SIZE}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)
while True:
    signal.pause()
"""


class Target:
    """A process with memory to be filled."""

    def __init__(self) -> None:
        argv = [sys.executable, "-c", TARGET]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.pid = self.process.pid
        self.address = int(self.process.stdout.readline())

    def memory(self) -> bytes:
        with open(f"/proc/{self.pid}/mem", "rb") as file:
            file.seek(self.address)
            return file.read(SIZE)

    def close(self) -> None:
        self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    made = os.urandom(SIZE)
    (tmp_path / NAME).write_bytes(made)
    return made


def index_of(target: Target, folder: Path, data: bytes, **changes: int) -> Index:
    """An index of one task whose memory is `data`, from one file."""
    address = changes.get("address", target.address)
    records = b""
    for offset in range(0, SIZE, PIECE):
        piece = data[offset : offset + PIECE]
        crc = lib.thaw_crc32c(0, piece, PIECE)
        records += struct.pack("<QQIIIHH", address + offset, offset, PIECE, crc, 0, 0, 1)
    size = changes.get("size", SIZE)
    sizes = {"extents": SIZE, "zero": 0, "skeleton": 0}
    document = Document("", [changes.get("task", target.pid)], [Blob(NAME, size)], {}, {}, sizes)
    records *= changes.get("times", 1)
    return Index(folder, folder, document, records, [[(address, address + SIZE)]])


def index_of_pieces(target: Target, folders: list[Path], data: bytes) -> Index:
    """The same with eight pieces, by turns in the folders."""
    records = b""
    blobs = []
    for number, offset in enumerate(range(0, SIZE, PIECE)):
        piece = data[offset : offset + PIECE]
        blobs.append(Blob(name_of(NAME, number), PIECE))
        folders[number % len(folders)].mkdir(exist_ok=True)
        (folders[number % len(folders)] / blobs[-1].name).write_bytes(piece)
        for at in range(0, PIECE, PIECE // 4):
            part = piece[at : at + PIECE // 4]
            crc = lib.thaw_crc32c(0, part, len(part))
            place = target.address + offset + at
            records += struct.pack("<QQIIIHH", place, at, len(part), crc, 0, number, 1)
    sizes = {"extents": SIZE, "zero": 0, "skeleton": 0}
    document = Document("", [target.pid], blobs, {}, {}, sizes)
    ranges = [[(target.address, target.address + SIZE)]]
    return Index(folders[0], folders[0], document, records, ranges, folders)


@pytest.mark.parametrize("budget", [0, 1 << 20, 1 << 30])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_it_is_filled(
    target: Target, tmp_path: Path, data: bytes, threads: int, budget: int
) -> None:
    with Filling(index_of(target, tmp_path, data), threads=threads, budget=budget) as filling:
        filling.prefetch()
        progress = filling.fill(target.pid)
    assert progress.done == progress.total == SIZE
    assert target.memory() == data


def test_staging_comes_first(target: Target, tmp_path: Path, data: bytes) -> None:
    parts = [Staging(target.address + n * PIECE, PIECE) for n in (6, 3, 2)]
    staging = [CudaProcess(1, [Staging(target.address, SIZE)]), CudaProcess(target.pid, parts)]
    with Filling(index_of(target, tmp_path, data), staging=staging) as filling:
        records = [filling._extents[n] for n in range(len(filling._extents))]
        order = [(extent.address - target.address) // PIECE for extent in records]
        filling.prefetch()
        filling.fill(target.pid)
    assert order == [2, 3, 6, 0, 1, 4, 5, 7]
    assert target.memory() == data


@pytest.mark.parametrize("count", [1, 3, 6])
def test_it_is_filled_from_several_disks(
    target: Target, tmp_path: Path, data: bytes, count: int
) -> None:
    folders = [tmp_path / f"disk{n}" for n in range(count)]
    with Filling(index_of_pieces(target, folders, data), budget=1 << 30) as filling:
        filling.prefetch()
        assert filling.fill(target.pid).done == SIZE
    assert target.memory() == data


def test_a_flipped_bit_on_one_of_them(target: Target, tmp_path: Path, data: bytes) -> None:
    """Whatever the order in which they are read, the place is named."""
    folders = [tmp_path / f"disk{n}" for n in range(3)]
    index = index_of_pieces(target, folders, data)
    with open(folders[5 % 3] / "pages-1.img.0005", "r+b") as file:
        file.seek(PIECE // 2 + 17)
        file.write(bytes([data[5 * PIECE + PIECE // 2 + 17] ^ 1]))
    words = rf"pages-1\.img\.0005 at {PIECE // 2} .* has another checksum"
    refused(Filling(index, budget=1 << 30), target, words)


def test_a_reader_for_every_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert [_readers(disks) for disks in (1, 4, 8, 9, 20)] == [0, 0, 0, 9, 20]


def test_it_is_verified_for_nobody(target: Target, tmp_path: Path, data: bytes) -> None:
    with Filling(index_of(target, tmp_path, data)) as filling:
        assert filling.verify().done == SIZE
    assert target.memory() == bytes(SIZE)


def refused(filling: Filling, target: Target, words: str) -> ThawError:
    with filling, pytest.raises((Damaged, RestoreFailed), match=words) as refusal:
        filling.fill(target.pid)
    return refusal.value


def test_a_flipped_bit(target: Target, tmp_path: Path, data: bytes) -> None:
    spoilt = bytearray(data)
    spoilt[5 * PIECE + 17] ^= 1
    (tmp_path / NAME).write_bytes(spoilt)
    words = f"pages-1.img at {5 * PIECE} .* has another checksum"
    error = refused(Filling(index_of(target, tmp_path, data)), target, words)
    assert isinstance(error, Damaged)
    assert "damaged" in error.hint


def test_a_file_that_has_shrunk_since_it_was_opened(
    target: Target, tmp_path: Path, data: bytes
) -> None:
    filling = Filling(index_of(target, tmp_path, data))
    os.truncate(tmp_path / NAME, SIZE // 2)
    refused(filling, target, "is cut off")


def test_a_file_of_another_size(target: Target, tmp_path: Path, data: bytes) -> None:
    os.truncate(tmp_path / NAME, SIZE // 2)
    with pytest.raises(Unfit, match=rf"has {SIZE // 2} bytes, it had {SIZE}"):
        Filling(index_of(target, tmp_path, data))


@pytest.mark.parametrize("kind", ["link", "fifo", "nothing"])
def test_what_is_no_file(target: Target, tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / NAME).unlink()
    if kind == "link":
        (tmp_path / NAME).symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(tmp_path / NAME)
    with pytest.raises(Unfit):
        Filling(index_of(target, tmp_path, data))


def test_a_process_that_is_not_there(target: Target, tmp_path: Path, data: bytes) -> None:
    refused(Filling(index_of(target, tmp_path, data, task=1)), target, "no process 1 to fill")


def test_memory_that_is_not_there(target: Target, tmp_path: Path, data: bytes) -> None:
    index = index_of(target, tmp_path, data, address=0x10000)
    refused(Filling(index), target, "no writable memory at 0x10000-")
    assert target.memory() == bytes(SIZE)


def test_a_process_that_was_killed(target: Target, tmp_path: Path, data: bytes) -> None:
    filling = Filling(index_of(target, tmp_path, data))
    target.process.send_signal(signal.SIGKILL)
    target.process.wait()
    refused(filling, target, "no process")


def test_cancelled_before_it_began(target: Target, tmp_path: Path, data: bytes) -> None:
    filling = Filling(index_of(target, tmp_path, data))
    filling.cancel()
    refused(filling, target, "cancelled")


def test_not_in_time(target: Target, tmp_path: Path, data: bytes) -> None:
    """Nobody touches the process once that has been said."""
    with Filling(index_of(target, tmp_path, data, times=2000), threads=2) as filling:
        with pytest.raises(RestoreFailed, match="not filled in"):
            filling.fill(target.pid, seconds=0)
        done = filling.progress().done
        time.sleep(0.05)
        assert filling.progress().done == done


def test_after_it_was_closed(target: Target, tmp_path: Path, data: bytes) -> None:
    filling = Filling(index_of(target, tmp_path, data))
    filling.fill(target.pid)
    filling.progress()
    filling.close()
    filling.cancel()
    assert filling.progress().done == SIZE


def test_closing_gives_everything_back(target: Target, tmp_path: Path, data: bytes) -> None:
    fds, others = open_fds(), own_threads()
    for _ in range(3):
        filling = Filling(index_of(target, tmp_path, data), budget=1 << 20)
        filling.prefetch()
        filling.close()
        filling.close()
    eventually(lambda: own_threads() <= others)
    assert open_fds(fds) == set()


def test_where_a_process_can_write(target: Target) -> None:
    found = writable_ranges(target.pid)
    assert any(start <= target.address < target.address + SIZE <= end for start, end in found)
    assert found == sorted(found)
    assert all(end < start for (_, end), (start, _) in pairwise(found))


# -- what a restore sees of it --------------------------------------------------------------------


def test_switched_off(tmp_path: Path) -> None:
    config = Config({"restore.engine": "criu"})
    memory = ReadAhead().take(tmp_path, tmp_path, config)
    assert (memory.filling, memory.reason) == (None, SWITCHED_OFF)
    assert memory.report() == {"memory": "criu", "because": SWITCHED_OFF}


def test_without_an_index(tmp_path: Path) -> None:
    memory = ReadAhead().take(tmp_path / "index", tmp_path, Config())
    assert (memory.filling, memory.reason) == (None, NO_INDEX)
    memory.read_ahead()
    memory.fill(os.getpid())
    memory.close()
    assert memory.report()["memory"] == "criu"


def test_a_snapshot_in_pieces(target: Target, tmp_path: Path, data: bytes) -> None:
    """Its index is looked for where the snapshot has it, the pieces in all folders of these."""
    images = single(tmp_path / "criu", {BASE: noise(LARGE), 1 << 40: noise(PAGE)})
    pages = [tmp_path / "pages"]
    pages[0].mkdir()
    Pieces(pages).take(images)
    make(images, tmp_path / "index", pages=pages)
    memory = ReadAhead().take(tmp_path / "index", images, Config(), pages=pages)
    assert memory.filling is not None
    assert memory.filling.verify().done == LARGE
    memory.check_files()
    memory.close()


def test_a_damaged_index(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    with pytest.raises(Unfit):
        ReadAhead().take(tmp_path / "index", tmp_path, Config())


def test_a_fill_and_what_is_said_of_it(target: Target, tmp_path: Path, data: bytes) -> None:
    memory = Memory(Filling(index_of(target, tmp_path, data)))
    memory.read_ahead()
    memory.fill(target.pid)
    memory.close()
    said = memory.report()
    assert (said["memory"], said["gib"]) == ("native", f"{SIZE / GIB:.3f}")
    assert float(said["fill"]) >= 0
    assert target.memory() == data


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What asks for a snapshot of the namespace `theirs` to be read ahead, but for whose pod."""
    monkeypatch.setattr(ReadAhead, "_volunteer", lambda _: None)
    store = tmp_path / "snapshots"
    state = CudaState([CudaProcess(1, [Staging(BASE, LARGE)])])
    theirs = replace(config(namespace="theirs"), gpu=state)
    write(store / "snapshots" / "0123456789abcdef", theirs)
    (store / "names").mkdir()
    (store / "names" / "warm").write_text("0123456789abcdef\n")
    for folder in (store, store / "names", store / "snapshots"):
        folder.chmod(0o700)
    return {"name": "warm", "config": {"snapshots": str(store)}}


def test_what_a_pod_may_not_have_is_not_read_for_it(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[Path, object]] = []

    def take(_: ReadAhead, folder: Path, *more: object) -> None:
        taken.append((folder, more[-1]))

    monkeypatch.setattr(ReadAhead, "take", take)
    ReadAhead().begin({**asked, "namespace": "ours"})
    assert taken == []
    ReadAhead().begin({**asked, "namespace": "theirs"})
    made = tmp_path / "snapshots" / "snapshots" / "0123456789abcdef"
    assert taken == [(made / "index", [CudaProcess(1, [Staging(BASE, LARGE)])])]


def test_crius_files_are_read_meanwhile(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with them is nobody's business yet."""
    done: list[str] = []
    enough = threading.Event()

    def check_files() -> None:
        enough.wait(60)
        done.append("files")
        raise Damaged("on purpose")

    memory = Memory(None)
    monkeypatch.setattr(memory, "check_files", check_files)
    monkeypatch.setattr(memory, "read_ahead", lambda: done.append("ahead"))
    monkeypatch.setattr(ReadAhead, "take", lambda *_: memory)
    ahead = ReadAhead()
    ahead.begin({**asked, "namespace": "theirs"})
    assert done == ["ahead"]
    enough.set()
    assert ahead._checking is not None
    Memory(None, checking=ahead._checking).check_files()
    assert done == ["ahead", "files"], "it was waited for"
