"""A fill that fails or is given up: it says why, stops, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import re
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakes.filling import (
    CHECKSUM,
    CHOSEN,
    DIRECT,
    FOREVER,
    MIB,
    OWN,
    PAGE,
    PAGE_CACHE,
    SHORT,
    SPARSE,
    TASK,
    Blob,
    Fill,
    Piece,
    Target,
    in_a_row,
    noise,
)
from fakes.host import open_fds
from fakes.settled import PATIENCE, eventually, own_threads

SIZE = 18 * MIB + 3 * PAGE
READ_ONLY = 1
NOWHERE = (1 << 64) - 1
ALL_SIGNALS = 0xFFFFFFFE7FFBFEBF  # but SIGBUS, SIGKILL, SIGSTOP and the two of the C library

pytestmark = pytest.mark.parametrize("budget", [0, 4 * MIB, 64 * MIB])


@pytest.fixture
def blob(tmp_path: Path) -> Iterator[Blob]:
    made = Blob(tmp_path / "blob", noise(SIZE))
    yield made
    made.close()


@pytest.fixture
def endless(blob: Blob) -> list[Piece]:
    """More than a process can get in a minute: the same data again and again."""
    return [Piece(0, 4 * MIB, 0)] * 200_000


def code(fill: Fill, milliseconds: int = FOREVER) -> int:
    """The errno that waiting ends with."""
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        fill.wait(milliseconds)
    assert caught.value.errno is not None
    return caught.value.errno


def until_some_is_done(fill: Fill) -> None:
    """Or until it has failed: nothing need be done then, ever."""
    while fill.progress().done == 0 and fill.failure() == (0, 0, 0):
        time.sleep(0.001)


@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "at once"])
@pytest.mark.parametrize("source", [CHOSEN, PAGE_CACHE, DIRECT])
def test_other_data(blob: Blob, source: int, ahead: bool, budget: int) -> None:
    blob.drop()
    with Fill([blob], in_a_row(SIZE), source=source, budget=budget, damage=[3]) as fill:
        if ahead:
            fill.prefetch()
            time.sleep(0.05)
        with suppress(OSError):  # reading ahead may have seen it already
            fill.start()
        assert code(fill) == errno.EBADMSG
        assert fill.failure() == (errno.EBADMSG, CHECKSUM, 3)


@pytest.mark.parametrize("size", [0, 9 * MIB, 9 * MIB + PAGE, 9 * MIB + 77])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("source", [CHOSEN, PAGE_CACHE, DIRECT])
def test_a_file_that_is_too_short(
    blob: Blob, source: int, warm: bool, size: int, budget: int
) -> None:
    os.truncate(blob.path, size)
    if not warm:
        blob.drop()
    with Fill([blob], in_a_row(SIZE), source=source, budget=budget, fillers=1) as fill:
        fill.start()
        assert code(fill) == errno.ENODATA
        error, stage, place = fill.failure()
        assert (error, stage) == (errno.ENODATA, SHORT)
        assert place >= size // (4 * MIB)


@pytest.mark.parametrize("source", [CHOSEN, PAGE_CACHE, DIRECT])
def test_a_file_that_shrinks(blob: Blob, endless: list[Piece], source: int, budget: int) -> None:
    with Fill([blob], endless, source=source, budget=budget) as fill:
        fill.start()
        until_some_is_done(fill)
        os.truncate(blob.path, MIB)
        assert code(fill) == errno.ENODATA
        assert fill.failure()[1] == SHORT


def test_a_task_that_is_gone(blob: Blob, budget: int) -> None:
    with Target(SIZE) as target, Fill([blob], in_a_row(SIZE), [0], budget=budget) as fill:
        target.kill()
        target.process.wait()
        fill.start([target.pid])
        assert code(fill) == errno.ESRCH
        assert fill.failure()[:2] == (errno.ESRCH, TASK)


def test_a_task_that_is_gone_is_missed_if_nothing_is_written(tmp_path: Path, budget: int) -> None:
    """Zero pages are not, and nobody would know."""
    blob = Blob(tmp_path / "zeros", bytes(SIZE))
    pieces = [Piece(at, PAGE, at, flags=SPARSE) for at in range(0, MIB, PAGE)]
    with Target(SIZE) as target, Fill([blob], pieces, [target.address], budget=budget) as fill:
        target.kill()
        target.process.wait()
        fill.start([target.pid])
        assert code(fill) == errno.ESRCH
        assert fill.failure() == (errno.ESRCH, TASK, 0)
    blob.close()


def test_tasks_without_pids(blob: Blob, budget: int) -> None:
    with Fill([blob], in_a_row(SIZE), budget=budget) as fill:
        with pytest.raises(OSError, match="Invalid"):
            fill.start([])
        fill.start()  # nothing of it has stayed
        fill.wait()


def test_tasks_for_which_there_are_no_descriptors(blob: Blob, budget: int) -> None:
    """Of the pidfds too few: that is said, waiting says so too, and what was opened is closed."""
    before = open_fds()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    pids = [os.getpid()] * 2000
    with Fill([blob], in_a_row(SIZE), budget=budget) as fill:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1000, limits[1]), limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                fill.start(pids)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert open_fds(before) == set()


def test_files_for_which_there_are_no_descriptors(blob: Blob, budget: int) -> None:
    """No reason to read through the page cache without a word."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(blob.fd)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 8, limits[1]))
    with suppress(OSError):
        while True:
            taken.append(os.dup(blob.fd))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Fill([blob], in_a_row(SIZE), budget=budget)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)


def test_a_task_that_dies(blob: Blob, endless: list[Piece], budget: int) -> None:
    with Target(4 * MIB) as target, Fill([blob], endless, [target.address], budget=budget) as fill:
        fill.start([target.pid])
        until_some_is_done(fill)
        target.kill()
        assert code(fill) in (errno.ESRCH, errno.EFAULT)
        assert fill.failure()[1] == TASK


@pytest.mark.parametrize("flags", [0, SPARSE])
def test_memory_that_is_not_there(blob: Blob, flags: int, budget: int) -> None:
    piece = Piece(0, 2 * MIB, MIB, flags=flags)
    with Target(2 * MIB) as target, Fill([blob], [piece], [target.address], budget=budget) as fill:
        # What lies behind the mapping may be mapped too, so far is too far for it.
        fill.extents[0].address = (1 << 46) + PAGE
        fill.start([target.pid])
        assert code(fill) == errno.EFAULT
        assert fill.failure() == (errno.EFAULT, TASK, 0)


def test_memory_that_may_not_be_written(blob: Blob, budget: int) -> None:
    pieces = in_a_row(SIZE)
    with (
        Target(SIZE, prot=READ_ONLY) as target,
        Fill([blob], pieces, [target.address], budget=budget) as fill,
    ):
        fill.start([target.pid])
        assert code(fill) == errno.EFAULT
        assert fill.failure()[:2] == (errno.EFAULT, TASK)


def test_cancelled_before_anything(blob: Blob, budget: int) -> None:
    with Fill([blob], in_a_row(SIZE), budget=budget) as fill:
        fill.cancel()
        assert code(fill) == errno.ECANCELED
        assert fill.failure() == (errno.ECANCELED, OWN, NOWHERE)
        for call in (fill.prefetch, fill.start):
            with pytest.raises(OSError, match="canceled"):
                call()


def test_cancelled_while_reading_ahead(blob: Blob, budget: int) -> None:
    blob.drop()
    with Fill([blob], in_a_row(SIZE), budget=budget, source=DIRECT) as fill:
        fill.prefetch()
        time.sleep(0.01)
        fill.cancel()
        fill.cancel()
        assert code(fill) == errno.ECANCELED
        with pytest.raises(OSError, match="canceled"):
            fill.start()


def test_cancelled_in_the_middle(blob: Blob, endless: list[Piece], budget: int) -> None:
    with Target(4 * MIB) as target, Fill([blob], endless, [target.address], budget=budget) as fill:
        fill.start([target.pid])
        until_some_is_done(fill)
        assert code(fill, 20) == errno.ETIMEDOUT
        fill.cancel()
        started = time.monotonic()
        assert code(fill) == errno.ECANCELED
        assert time.monotonic() - started < PATIENCE
        # Nobody touches the task from here on.
        done = fill.progress().done
        assert done < fill.progress().total
        time.sleep(0.01)
        assert fill.progress().done == done


def test_cancelled_too_late(blob: Blob, budget: int) -> None:
    with Fill([blob], in_a_row(SIZE), budget=budget) as fill:
        fill.start()
        fill.wait()
        fill.cancel()
        fill.wait()
        assert fill.failure() == (0, 0, 0)


def test_the_first_failure_counts(blob: Blob, budget: int) -> None:
    with Fill([blob], in_a_row(SIZE), budget=budget, damage=[0, 1, 2, 3, 4]) as fill:
        fill.start()
        assert code(fill) == errno.EBADMSG
        first = fill.failure()
        fill.cancel()
        assert (code(fill), fill.failure()) == (errno.EBADMSG, first)


def test_no_two_starts(blob: Blob, budget: int) -> None:
    with Fill([blob], in_a_row(SIZE), budget=budget) as fill:
        fill.start()
        with pytest.raises(OSError, match="already"):
            fill.start()
        fill.wait()


def test_a_task_that_nobody_named(blob: Blob, budget: int) -> None:
    with Fill([blob], [Piece(0, PAGE, 0)], budget=budget) as fill:
        fill.extents[0].task = 1
        with pytest.raises(OSError, match="Invalid"):
            fill.start([os.getpid()])


@pytest.mark.parametrize(
    "piece",
    [
        Piece(SIZE - PAGE, 2 * PAGE, 0),
        Piece(1 << 63, PAGE, 0),
        Piece(0, 4 * MIB + PAGE, 0),
        Piece(0, 0, 0),
        Piece(0, PAGE + 1, 0),
        Piece(1, PAGE, 0),
    ],
    ids=str,
)
def test_what_would_leave_our_memory(blob: Blob, piece: Piece, budget: int) -> None:
    with pytest.raises(OSError, match="Invalid"):
        Fill([blob], [piece], budget=budget)


def resident() -> int:
    """Bytes of this process's anonymous memory."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def mappings() -> int:
    """How many this process has."""
    return Path("/proc/self/maps").read_text().count("\n")


def begin_and_leave(blob: Blob, endless: list[Piece], budget: int, turn: int) -> None:
    blob.drop()
    pieces = endless if turn % 2 else in_a_row(SIZE)
    with Fill([blob], pieces, budget=budget, source=DIRECT, damage=[4] * (turn % 3)) as fill:
        if turn % 4 > 0:
            fill.prefetch()
        if turn % 4 > 1:
            with suppress(OSError):  # reading ahead may have seen the damage already
                fill.start()
            until_some_is_done(fill)


def test_nothing_is_left(blob: Blob, endless: list[Piece], budget: int) -> None:
    """The C library keeps stacks and arenas of threads, but not ever more: a leak never ends."""
    del endless[1000:]
    fds, others = open_fds(), own_threads()
    grown: list[tuple[int, int]] = []
    while len(grown) < 6:
        maps, memory = mappings(), resident()
        for turn in range(24):
            begin_and_leave(blob, endless, budget, turn)
        eventually(lambda: own_threads() <= others)
        assert open_fds(fds) == set()
        maps, memory = mappings() - maps, resident() - memory
        if maps <= 0 and memory < MIB:
            return
        grown.append((maps, memory))
    pytest.fail(f"mappings and bytes that were added each time: {grown}")


def test_no_signal_is_for_the_threads(blob: Blob, endless: list[Piece], budget: int) -> None:
    others = own_threads()
    with Fill([blob], endless, budget=budget, fillers=3) as fill:
        fill.start()
        masks = [blocked(thread) for thread in own_threads() - others]
        # The reader has ended already if it finds that all of it is cached.
        alive = [mask for mask in masks if mask is not None]
        assert len(alive) >= 3
        assert all(mask & ALL_SIGNALS == ALL_SIGNALS for mask in alive)


def blocked(thread: str) -> int | None:
    """Gives the signals that a thread of this process blocks; None: it has ended."""
    try:
        status = Path(f"/proc/self/task/{thread}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = re.search(r"SigBlk:\s+(\w+)", status)
    assert found is not None
    return int(found[1], 16)


def test_a_thread_for_every_processor(blob: Blob, endless: list[Piece], budget: int) -> None:
    others = own_threads()
    with Fill([blob], endless, budget=budget, readers=1) as fill:
        fill.start()
        count = len(own_threads() - others)
        fillers = len(os.sched_getaffinity(0))
        # The reader has ended already if it finds that all of it is cached.
        assert fillers <= count <= fillers + (1 if budget >= 4 * MIB else 0)
