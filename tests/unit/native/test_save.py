"""save.c: memory into files, and the extents of it, against a model written in Python."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes.host import open_fds
from fakes.own_memory import PAGE, WINDOW, Memory, libc, opened
from fakes.settled import eventually, own_threads
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim._native import ffi, lib

HOLE = 16  # pages
ANONYMOUS, WANTED = 1, 2
PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
READING, TOO_SHORT, MEMORY, OWN = 1, 2, 4, 5


@dataclass(frozen=True)
class Run:
    address: int
    offset: int
    length: int
    task: int = 0
    source: int = 0
    flags: int = ANONYMOUS | WANTED


@dataclass(frozen=True)
class Failed(Exception):
    error: int
    stage: int
    place: int


def save(
    files: Sequence[int], runs: Sequence[Run], pids: Sequence[int] = (), threads: int = 0
) -> list[tuple[int, ...]]:
    """What thaw_save_run finds, as tuples; raises Failed."""
    records = ffi.new("struct thaw_run[]", [astuple(run) for run in runs])
    result = ffi.new("struct thaw_save **")
    failure: Any = ffi.new("struct thaw_failure *")
    who = ffi.new("int[]", list(pids)) if pids else ffi.NULL
    status = lib.thaw_save_run(
        ffi.new("int[]", list(files)),
        len(files),
        records,
        len(runs),
        who,
        len(pids),
        threads,
        result,
        failure,
    )
    assert status == -failure.error
    if status:
        assert result[0] == ffi.NULL
        raise Failed(failure.error, failure.stage, failure.place)
    count = ffi.new("size_t *")
    found = lib.thaw_save_extents(result[0], count)
    names = ("source", "offset", "task", "address", "length", "flags", "checksum")
    extents = [tuple(getattr(found[i], name) for name in names) for i in range(count[0])]
    lib.thaw_save_close(result[0])
    return extents


def model(runs: Sequence[Run], pages: dict[int, bytes]) -> list[tuple[int, ...]]:
    """What should be found; `pages` by address."""
    extents = []
    for run in runs:
        addresses = range(run.address, run.address + run.length, PAGE)
        for start in sorted({address // WINDOW for address in addresses}):
            piece = [a for a in addresses if a // WINDOW == start]
            for stretch in cut(piece, pages) if run.flags & ANONYMOUS else [piece]:
                data = b"".join(pages[address] for address in stretch)
                offset = run.offset + stretch[0] - run.address
                checksum = lib.thaw_crc32c(0, data, len(data))
                flags = run.flags & ANONYMOUS
                place = (run.source, offset, run.task, stretch[0])
                extents.append((*place, len(data), flags, checksum))
    return sorted(extents)


def cut(piece: list[int], pages: dict[int, bytes]) -> Iterator[list[int]]:
    """The piece without its stretches of HOLE or more zero pages."""
    marks = "".join("0" if pages[address] == bytes(PAGE) else "x" for address in piece)
    at = 0
    while at < len(marks):
        zeros = len(marks) - at - len(marks[at:].lstrip("0"))
        if zeros >= HOLE:
            at += zeros
            continue
        end = marks.find("0" * HOLE, at)
        end = len(marks) if end < 0 else end
        yield piece[at:end]
        at = end


def contents(numbers: Sequence[int]) -> list[bytes]:
    """Pages: 0 is zeros, others are told apart by their number, in the last bytes too."""
    return [n.to_bytes(2, "big") * 2048 if n > 1 else bytes(PAGE - 1) + bytes([n]) for n in numbers]


def laid_out(memory: Memory, lengths: Sequence[int], around: int) -> tuple[list[Run], list[int]]:
    """Runs of these lengths (pages) behind each other in one file, apart in memory."""
    runs: list[Run] = []
    addresses: list[int] = []
    address = memory.start + WINDOW - around * PAGE
    offset = 0
    for number, length in enumerate(lengths):
        flags = (WANTED | ANONYMOUS, WANTED, ANONYMOUS, 0)[number % 4]
        runs.append(Run(address, offset, length * PAGE, 0, 0, flags))
        addresses += range(address, address + length * PAGE, PAGE)
        offset += length * PAGE
        address += length * PAGE + PAGE
    return runs, addresses


stretches = st.lists(
    st.tuples(st.sampled_from([0, 0, 1, 2, 700]), st.integers(1, 40)), min_size=1, max_size=12
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stretches, st.lists(st.integers(1, 90), min_size=1, max_size=9), st.integers(0, 200))
def test_like_the_model(
    tmp_path: Path, drawn: list[tuple[int, int]], lengths: list[int], around: int
) -> None:
    """Dumped by any number of threads, or read from the file: what the model says, every time."""
    memory = Memory(2)
    runs, addresses = laid_out(memory, lengths, around)
    numbers = [number for number, times in drawn for _ in range(times)]
    numbers = (numbers * (len(addresses) // len(numbers) + 1))[: len(addresses)]
    pages = dict(zip(addresses, contents(numbers), strict=True))
    for address, data in pages.items():
        memory.write(address, data)
    wanted = model([run for run in runs if run.flags & WANTED], pages)
    path = tmp_path / "pages"
    for threads in (1, 3):
        path.unlink(missing_ok=True)
        with opened(path) as files:
            os.ftruncate(files[0], len(addresses) * PAGE)
            assert save(files, runs[::-1], [os.getpid()], threads) == wanted
            assert path.read_bytes() == b"".join(pages.values())
            assert save(files, runs[::-1], [], threads) == wanted


def test_many_pieces_and_threads(tmp_path: Path) -> None:
    """Groups fill up by bytes and by number, in two files, with O_DIRECT."""
    memory = Memory(16)
    data = os.urandom(16 * WINDOW)
    memory.write(memory.start, data)
    small = [
        Run(memory.start + 2 * i * PAGE, i * PAGE, PAGE, 0, 0) for i in range(3 * 1024)
    ]  # every other page
    large = [Run(memory.start, 0, 16 * WINDOW, 0, 1)]
    paths = (tmp_path / "small", tmp_path / "large")
    with opened(*paths, flags=os.O_RDWR | os.O_CREAT | os.O_DIRECT) as files:
        os.ftruncate(files[0], 3 * 1024 * PAGE)
        os.ftruncate(files[1], 16 * WINDOW)
        found = [save(files, small + large, [os.getpid()], n) for n in (1, 2, 8)]
        found += [save(files, small + large, [], n) for n in (1, 8)]
    assert paths[0].read_bytes() == b"".join(
        data[at : at + PAGE] for at in range(0, 6 * 1024 * PAGE, 2 * PAGE)
    )
    assert paths[1].read_bytes() == data
    assert all(extents == found[0] for extents in found)
    assert len(found[0]) == 3 * 1024 + 16


def test_zeros_are_holes(tmp_path: Path) -> None:
    memory = Memory(4)
    memory.write(memory.start + WINDOW, b"something")
    path = tmp_path / "pages"
    with opened(path) as files:
        os.ftruncate(files[0], 4 * WINDOW)
        run = Run(memory.start, 0, 4 * WINDOW, flags=WANTED)
        found = save(files, [run], [os.getpid()])
    assert path.stat().st_blocks * 512 <= 64 << 10
    assert [extent[4] for extent in found] == [WINDOW] * 4, "shared memory is not cut"


def test_memory_that_may_not_be_read(tmp_path: Path) -> None:
    """A protection that came later does not hide pages from CRIU, nor from us."""
    memory = Memory(3)
    data = os.urandom(2 * WINDOW)
    memory.write(memory.start, data)
    hidden = memory.start + 37 * PAGE
    memory.protect(hidden, 5 * PAGE, PROT_NONE)
    path = tmp_path / "pages"
    try:
        with opened(path) as files:
            os.ftruncate(files[0], len(data))
            save(files, [Run(memory.start, 0, len(data))], [os.getpid()])
    finally:
        memory.protect(hidden, 5 * PAGE, PROT_READ | PROT_WRITE)
    assert path.read_bytes() == data


@pytest.mark.parametrize("threads", [1, 4])
def test_memory_that_is_not_there(tmp_path: Path, threads: int) -> None:
    memory = Memory(4)
    memory.write(memory.start, b"x" * WINDOW * 3)
    gone = memory.start + 2 * WINDOW + PAGE
    assert libc.munmap(ctypes.c_void_p(gone), ctypes.c_size_t(PAGE)) == 0
    runs = [Run(memory.start, 0, WINDOW), Run(memory.start + WINDOW, WINDOW, 2 * WINDOW)]
    try:
        with opened(tmp_path / "pages") as files, pytest.raises(Failed) as caught:
            save(files, runs, [os.getpid()], threads)
    finally:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED: the map is whole again
        libc.mmap.restype = ctypes.c_void_p
        assert libc.mmap(ctypes.c_void_p(gone), ctypes.c_size_t(PAGE), 3, flags, -1, 0) == gone
    assert caught.value == Failed(errno.EIO, MEMORY, 1)


def test_a_task_that_is_gone(tmp_path: Path) -> None:
    gone = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(gone, 0)
    with opened(tmp_path / "pages") as files, pytest.raises(Failed) as caught:
        save(files, [Run(PAGE, 0, PAGE)], [gone])
    assert caught.value == Failed(errno.ESRCH, MEMORY, 0)


def test_a_full_disk(tmp_path: Path) -> None:
    memory = Memory(1)
    memory.write(memory.start, b"x" * PAGE)
    with opened(Path("/dev/full"), flags=os.O_RDWR) as files, pytest.raises(Failed) as caught:
        save(files, [Run(memory.start, 0, PAGE)], [os.getpid()])
    assert caught.value == Failed(errno.ENOSPC, OWN, 0)


def test_files_that_are_too_short(tmp_path: Path) -> None:
    with opened(tmp_path / "a", tmp_path / "b") as files:
        os.ftruncate(files[0], WINDOW)
        os.ftruncate(files[1], WINDOW - 1)
        runs = [Run(WINDOW, 0, WINDOW, 0, 0), Run(WINDOW, 0, WINDOW, 0, 1)]
        with pytest.raises(Failed) as caught:
            save(files, runs)
    assert caught.value == Failed(errno.ENODATA, TOO_SHORT, 1)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with opened(tmp_path, flags=os.O_RDONLY) as files, pytest.raises(Failed) as caught:
        save(files, [Run(WINDOW, 0, PAGE)])
    assert (caught.value.error, caught.value.stage) == (errno.EISDIR, READING)


@pytest.mark.parametrize(
    "run",
    [
        Run(1, 0, PAGE),
        Run(PAGE, 1, PAGE),
        Run(PAGE, 0, 1),
        Run((1 << 64) - PAGE, 0, 2 * PAGE),
        Run(PAGE, (1 << 63) - PAGE, PAGE),
        Run(PAGE, 0, (1 << 64) - PAGE),
        Run(PAGE, 0, PAGE, source=1),
        Run(PAGE, 0, PAGE, task=1),
    ],
)
def test_runs_that_make_no_sense(tmp_path: Path, run: Run) -> None:
    with opened(tmp_path / "pages") as files, pytest.raises(Failed) as caught:
        save(files, [Run(0, 0, 0), run], [os.getpid()])
    assert caught.value == Failed(errno.EINVAL, OWN, 1)


def test_nothing_to_do(tmp_path: Path) -> None:
    with opened(tmp_path / "pages") as files:
        assert save(files, [], [os.getpid()]) == []
        assert save(files, [Run(PAGE, 0, 0)]) == []
        assert save([], []) == []


def test_without_direct_io_if_the_file_has_none(tmp_path: Path) -> None:
    """A file system may refuse it only when it comes to reading: a file of odd length here."""
    path = tmp_path / "pages"
    path.write_bytes(b"y" * 2 * PAGE)
    with opened(path, flags=os.O_RDONLY | os.O_DIRECT) as files:
        assert len(save(files, [Run(WINDOW, 0, 2 * PAGE)])) == 1


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    memory = Memory(4)
    memory.write(memory.start, os.urandom(4 * WINDOW))
    fds, others = open_fds(), own_threads()
    with opened(tmp_path / "pages") as files:
        os.ftruncate(files[0], 4 * WINDOW)
        save(files, [Run(memory.start, 0, 4 * WINDOW)], [os.getpid()], 8)
    eventually(lambda: own_threads() <= others)
    assert open_fds(fds) == set()


def test_shared_memory_that_nobody_maps(tmp_path: Path) -> None:
    """A task can be a file, if its pid is a descriptor's complement."""
    data = os.urandom(3 * PAGE)
    memfd = os.memfd_create("shared")
    os.write(memfd, bytes(PAGE) + data)
    try:
        with opened(tmp_path / "pages") as files:
            os.ftruncate(files[0], 3 * PAGE)
            run = Run(PAGE, 0, 3 * PAGE, flags=0)
            assert save(files, [run], [~memfd]) == []
            with pytest.raises(Failed) as caught:
                save(files, [run, Run(2 * PAGE, 0, 3 * PAGE)], [~memfd])
    finally:
        os.close(memfd)
    assert (tmp_path / "pages").read_bytes() == data
    assert caught.value == Failed(errno.ENODATA, MEMORY, 1)
