"""Regions of GPU memory under the fake driver, which makes files of them: to be looked into."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fakes.cuda import VARIABLE, FakeCuda
from fakes.nvml import H100, numbered
from fakes.settled import eventually, own_threads
from shim.cache.client import Cached
from shim.gpu.memory.copyin import CopyIn, Source
from shim.gpu.memory.device import CHUNK, GRANULARITY, CopyOut, Memory, Region, laid_out
from shim.gpu.memory.making import Shared, Wanted
from shim.gpu.nvml import uuid_bytes
from shim.snapshot.layout import Run

MIB = 1 << 20
PATIENCE = 60.0  # seconds
UUIDS = [uuid_bytes(numbered(H100, index).uuid) for index in range(4)]


def content(region: Shared) -> bytes:
    """All of it."""
    fd = region.descriptor()
    try:
        return os.pread(fd, region.size, 0)
    finally:
        os.close(fd)


def put(region: Region, data: bytes, at: int = 0) -> None:
    """What a worker's kernels would have written there."""
    fd = region.descriptor()
    try:
        assert os.pwrite(fd, data, at) == len(data)
    finally:
        os.close(fd)


def streams(cuda: FakeCuda) -> int:
    """How many there are in this process."""
    return int(ctypes.CDLL(cuda.library).fakeStreams())


def used(cuda: FakeCuda, gpu: int = 0) -> int:
    """Bytes of a GPU that this process holds by itself."""
    return int(ctypes.CDLL(cuda.library).fakeUsed(gpu)) << 10


PAIRS = [("cuMemHostRegister_v2", "cuMemHostUnregister"), ("cuEventCreate", "cuEventDestroy_v2")]


@dataclass
class Machine:
    """The driver, and what was made with it."""

    cuda: FakeCuda
    memory: Memory
    stack: ExitStack
    refused: str = ""  # a call that does not do its work here

    def region(self, size: int, gpu: int = 0) -> Region:
        return self.stack.enter_context(self.memory.create(UUIDS[gpu], size))

    def with_data(self, data: bytes, gpu: int = 0) -> Region:
        made = self.region(len(data), gpu)
        put(made, data)
        return made


@contextmanager
def three_gpus(folder: Path) -> Iterator[FakeCuda]:
    """A driver with three GPUs, and this process in its world."""
    made = FakeCuda(folder)
    (made.folder / "gpus").write_text("0,1,2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(made.folder))
        yield made


@contextmanager
def machine_of(cuda: FakeCuda) -> Iterator[Machine]:
    """It is to be left as it was: no stream, no event, no pinned memory, no thread."""
    cuda.reset()
    cuda.trace()
    before, memory = own_threads(), Memory.open(cuda.library)
    with ExitStack() as stack:
        made = Machine(cuda, memory, stack)
        yield made
        cuda.reset()
    memory.close()
    assert streams(cuda) == 0
    for begun, ended in PAIRS:
        assert begun == made.refused or cuda.count(begun) == cuda.count(ended)
    eventually(lambda: own_threads() <= before)


class Store:
    """Files with the data of regions, dealt over a few folders, as a snapshot has them."""

    def __init__(self, folder: Path, piece: int = 3 << 20) -> None:
        self.folder = folder
        self.piece = piece
        self.paths: list[Path] = []
        self.extents = b""

    def save(self, regions: Sequence[Region], *, threads: int = 0, budget: int = 64 << 20) -> None:
        runs, sizes = laid_out([region.scan() for region in regions], self.piece)
        self.copy_out(regions, runs, sizes, threads=threads, budget=budget)

    def copy_out(
        self,
        regions: Sequence[Region],
        runs: Sequence[Run],
        sizes: Sequence[int],
        *,
        threads: int = 0,
        budget: int = 64 << 20,
    ) -> None:
        self.paths = [self.folder / f"gpu-1.img.{number:04d}" for number in range(len(sizes))]
        files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in self.paths]
        try:
            for fd, size in zip(files, sizes, strict=True):
                os.truncate(fd, size)
            named = [(path.name, fd) for path, fd in zip(self.paths, files, strict=True)]
            with CopyOut(regions, runs, named, threads=threads, budget=budget) as copy:
                copy.wait_read()
                self.extents = copy.finish()
        finally:
            for fd in files:
                os.close(fd)

    def open(self) -> list[Source]:
        """To be copied in; `close` gives them back."""
        return [
            Source(path.name, os.open(path, os.O_RDONLY), path.stat().st_size)
            for path in self.paths
        ]

    def data(self) -> bytes:
        """Of all files, one after the other."""
        return b"".join(path.read_bytes() for path in self.paths)


def start(copy: CopyIn, regions: Sequence[Region]) -> None:
    """Into regions that are there already."""
    copy.start([region.size for region in regions])
    for number, region in enumerate(regions):
        copy.add(number, region)


def fill(cached: Cached, wanted: Sequence[Wanted]) -> list[bytes] | None:
    """What comes from the cache, of each region; None if it cannot."""
    made: list[None] = []
    regions = cached.fill(wanted, lambda: made.append(None))
    if regions is None:
        return None
    try:
        assert made == [None], "it is told once that all are there"
        assert [(one.uuid, one.size) for one in regions] == [one[:2] for one in wanted]
        return [content(region) for region in regions]
    finally:
        for region in regions:
            region.close()


def copied_in(
    store: Store,
    regions: Sequence[Region],
    *,
    ahead: bool = True,
    budget: int = 64 * MIB,
    threads: int = 0,
) -> int:
    """Bytes that were copied."""
    sources = store.open()
    try:
        with CopyIn(store.extents, sources, budget=budget, threads=threads) as copy:
            if ahead:
                copy.prefetch()
            start(copy, regions)
            done = copy.wait(PATIENCE)
            assert done == copy.progress()
            assert done.done == done.total <= done.direct + done.cached
            return done.done
    finally:
        close(sources)


def close(sources: Sequence[Source]) -> None:
    for source in sources:
        os.close(source.fd)


def chunks(region: bytes) -> list[bytes]:
    """Its CHUNKs."""
    return [region[at : at + CHUNK] for at in range(0, len(region), CHUNK)]


def pattern(marks: str, seed: int) -> bytes:
    """A region's bytes: for each mark a CHUNK: "." zeros, "x" noise, "1" one byte that is not 0."""
    size = -(-len(marks) * CHUNK // GRANULARITY) * GRANULARITY
    data = bytearray(size)
    for number, mark in enumerate(marks):
        at = number * CHUNK
        if mark == "x":
            data[at : at + CHUNK] = bytes([1 + (seed + number) % 255]) * CHUNK
            data[at : at + 8] = (seed * 1000003 + number).to_bytes(8, "little")
        elif mark == "1":
            data[at + (seed * 7919 + number * 4099) % CHUNK] = 1
    return bytes(data)
