"""The bulk of a worker's memory, filled past CRIU: read ahead, then written in parallel.

CRIU restores the skeleton. At its `post-restore` stage every process has its final mappings and
waits in CRIU's restorer code; then `Filling.fill` writes the extents into them and verifies each
one's checksum. Only after that may CRIU go on: a process that has not got all of its memory never
runs. The threads, buffers and reads are native (native/fill.c); see snapshot/index.py for what an
extent is.

Nobody has to enter the pod's cgroup for this: a page that process_vm_writev brings in is charged to
the memory cgroup of the process that it is for, also in shared memory that is mapped there
(mm/shmem.c charges the faulting mapping's mm). The buffers are ours and charged to us. So are page
tables: they are charged to whoever faults them in (GFP_PGTABLE_USER is accounted to `current`), and
about 2 MiB per GiB of 4 KiB pages stays with the engine's cgroup for as long as the worker lives.
"""

from __future__ import annotations

import bisect
import errno
import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

from shim._native import ffi, lib
from shim.budget import available, budget_of
from shim.config import Config
from shim.errors import Damaged, RestoreFailed, ThawError
from shim.lean.values import Value
from shim.native import check
from shim.processes import processes_below
from shim.restore.numa import nodes_for
from shim.snapshot.config import DAMAGED
from shim.snapshot.cuda import CudaProcess
from shim.snapshot.extents import interleaved, parted
from shim.snapshot.index import Index
from shim.snapshot.pieces import open_source
from shim.snapshot.skeleton import united

if TYPE_CHECKING:
    from shim.gpu.memory.index import Stored

_TURN = 100  # milliseconds between two looks at the progress
_KILLED = (
    "has it been killed? A page that cannot be had shows as EFAULT, "
    "e.g. when the memory limit of the pod is reached"
)


class Progress(Value):
    """How far a fill is, in bytes; see struct thaw_progress."""

    total: int
    direct: int
    cached: int
    buffered: int
    peak: int
    done: int
    zero: int


class Filling:
    """The fill of one index. Its files are opened at once, so that they stay what they are.

    Raises Unfit if one is not what the index says. Closing it at any time ends all threads;
    `cancel` and `progress` may then still be called, by other threads too, but not while one of
    the other methods is under way. `staging` is filled first (see gpu/suspension.py for what it
    is).
    """

    def __init__(
        self,
        index: Index | Stored,
        *,
        threads: int = 0,
        budget: int = 0,
        source: int = 0,
        staging: Sequence[CudaProcess] = (),
    ) -> None:
        self.index = index
        self._fds = _open_sources(index)
        self._extents = ffi.from_buffer("struct thaw_extent[]", _in_order(index, staging))
        self._fill: Any = None
        self._lock = threading.Lock()  # of closing, against `cancel` and `progress`
        self._last = Progress(0, 0, 0, 0, 0, 0, 0)
        try:
            self._fill = self._open(threads, budget, source)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prefetch(self) -> None:
        """Begin to read what is not in the page cache, as far as the budget goes."""
        result = lib.thaw_fill_prefetch(self._fill)
        if result < 0:  # what was read ahead before may have been wrong
            raise self._failure(result)

    def hurry(self) -> None:
        """Leave what is in the page cache where it is: the processors are CRIU's from now on."""
        lib.thaw_fill_hurry(self._fill)

    def fill(self, init: int, seconds: float | None = None) -> Progress:
        """Write everything into the processes of `init`'s tree (a pid of ours) and verify it.

        Raises Damaged if what was read is not what it was, RestoreFailed at any other failure,
        after `seconds`, or if a process of the index is not there or has other mappings than it
        had.
        """
        pids = self._processes(init)
        self._refuse_other_mappings(pids)
        return self._run(pids, nodes_for(init), seconds)

    def verify(self, seconds: float | None = None) -> Progress:
        """Read everything and compare it with the checksums, for nobody."""
        return self._run(None, [], seconds)

    def cancel(self) -> None:
        """Make a `fill` that runs in another thread end soon, with RestoreFailed."""
        with self._lock:
            if self._fill is not None:
                lib.thaw_fill_cancel(self._fill)

    def progress(self) -> Progress:
        """How far it is; from any thread."""
        with self._lock:
            if self._fill is not None:
                now = ffi.new("struct thaw_progress *")
                lib.thaw_fill_progress(self._fill, now)
                self._last = Progress(*(getattr(now, field.name) for field in fields(Progress)))
            return self._last

    def close(self) -> None:
        """End all threads and give buffers and files back."""
        with self._lock:
            fill, self._fill = self._fill, None
        if fill is not None:
            lib.thaw_fill_close(fill)
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)

    def _open(self, threads: int, budget: int, source: int) -> Any:
        sources = ffi.new("struct thaw_source[]", len(self._fds))
        for number, (fd, blob) in enumerate(zip(self._fds, self.index.sources, strict=True)):
            sources[number].size, sources[number].file = blob.size, fd
        options = ffi.new("struct thaw_fill_options *")
        options.budget = budget
        options.readers = _readers(len(set(self.index.disks)))
        options.fillers = threads
        options.source = source
        made = ffi.new("struct thaw_fill **")
        result = lib.thaw_fill_open(
            sources, len(self._fds), self._extents, self.index.count, options, made
        )
        check(result, "cannot prepare the fill of", str(self.index.folder))
        return made[0]

    def _processes(self, init: int) -> list[int]:
        """The pids of the index's tasks, in its order."""
        found = processes_below(init)
        missing = [task for task in self.index.tasks if task not in found]
        if missing:
            raise RestoreFailed(
                f"no process {missing[0]} to fill", hint="has it ended while it was restored?"
            )
        return [found[task] for task in self.index.tasks]

    def _refuse_other_mappings(self, pids: Sequence[int]) -> None:
        for number, pid in enumerate(pids):
            writable = writable_ranges(pid)
            starts = [start for start, _ in writable]
            for start, end in self.index.ranges[number]:
                at = bisect.bisect_right(starts, start) - 1
                if at < 0 or writable[at][1] < end:
                    raise RestoreFailed(
                        f"process {self.index.tasks[number]} has no writable memory at "
                        f"{start:#x}-{end:#x}",
                        hint=f"is the index of other images? {self.index.remedy}",
                    )

    def _run(self, pids: list[int] | None, nodes: list[int], seconds: float | None) -> Progress:
        result = lib.thaw_fill_start(
            self._fill,
            ffi.new("int[]", pids) if pids is not None else ffi.NULL,  # no pids: nothing is written
            len(pids or ()),
            ffi.new("int[]", nodes) if nodes else ffi.NULL,
            len(nodes),
        )
        if result < 0:  # what was read ahead may have been wrong already
            raise self._failure(result)
        return self._wait(seconds)

    def _wait(self, seconds: float | None) -> Progress:
        ends = None if seconds is None else time.monotonic() + seconds
        while True:
            result = lib.thaw_fill_wait(self._fill, _TURN)
            if result == 0:
                return self.progress()
            if result != -errno.ETIMEDOUT:
                raise self._failure(result)
            if ends is not None and time.monotonic() > ends:
                self.cancel()
                lib.thaw_fill_wait(self._fill, -1)  # nobody touches a task any more
                done = self.progress()
                raise RestoreFailed(
                    f"memory was not filled in time: {done.done} of {done.total} bytes"
                )

    def _failure(self, result: int) -> ThawError:
        failure = ffi.new("struct thaw_failure *")
        lib.thaw_fill_failure(self._fill, failure)
        if result == -errno.ECANCELED:
            return RestoreFailed("the fill was cancelled")
        reason = os.strerror(failure.error) if failure.error else os.strerror(-result)
        if failure.stage not in (_READ, _SHORT, _CHECKSUM, _TASK):
            return RestoreFailed(f"cannot fill memory: {reason}")
        if failure.place >= len(self._extents):  # a task that nothing is to be written to
            return RestoreFailed(f"cannot fill memory of a process: {reason}", hint=_KILLED)
        extent = self._extents[failure.place]
        blob = self.index.sources[extent.source].name
        place = f"{blob} at {extent.offset} ({extent.length} bytes)"
        if failure.stage == _TASK:
            return RestoreFailed(
                f"cannot write {extent.length} bytes at {extent.address:#x} of process "
                f"{self.index.tasks[extent.task]}: {reason}",
                hint=_KILLED,
            )
        failures: dict[int, ThawError] = {
            _READ: RestoreFailed(f"cannot read {place}: {reason}", hint="is the disk well?"),
            _SHORT: Damaged(f"{place} is cut off", hint=DAMAGED),
            _CHECKSUM: Damaged(f"{place} has another checksum", hint=DAMAGED),
        }
        return failures[failure.stage]


_READ, _SHORT, _CHECKSUM, _TASK = 1, 2, 3, 4  # the stages of struct thaw_failure


def filling_of(
    index: Index | Stored, config: Config, shared_by: int = 1, staging: Sequence[CudaProcess] = ()
) -> Filling:
    """The fill of an index, as the operator's configuration has it.

    `shared_by` processes read ahead for one pod and share its budget. `staging` as of Filling.
    """
    return Filling(
        index,
        threads=int(config.number("restore.threads")),
        budget=budget_of(config.number("restore.memory"), available()) // shared_by,
        staging=staging,
    )


def _in_order(index: Index | Stored, staging: Sequence[CudaProcess]) -> bytes:
    """The extents in the order in which they are read and written.

    The disks of a striped snapshot are read by turns. Staging comes first: huge pages (huge.py)
    are to be had as long as free memory is in large pieces, and filling the rest breaks it up.

    The GPU driver reads the staging, and could in theory begin while the rest is being filled. It
    does not, because a thread of the worker's own does that reading (cuCheckpointProcess-
    GetRestoreThreadId). Before CRIU is done, that thread is in CRIU's restorer code like all the
    others; afterwards all of them run, in memory that has to be complete. There is little to gain:
    most of a GPU worker is staging, and a GiB of the rest takes a tenth of a second.
    """
    areas = {
        index.tasks.index(process.pid): united(
            (area.address, area.address + area.length) for area in process.staging
        )
        for process in staging
        if process.pid in index.tasks
    }
    parts = parted(index.extents, areas) if areas else (index.extents,)
    return b"".join([interleaved(part, index.disks) for part in parts])


def writable_ranges(pid: int) -> list[tuple[int, int]]:
    """Where a process can write, adjoining mappings as one, by address."""
    ranges: list[tuple[int, int]] = []
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            addresses, permissions, _ = line.split(" ", 2)
            if permissions[1] != "w":
                continue
            start, end = (int(part, 16) for part in addresses.split("-"))
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
    return ranges


def _readers(disks: int) -> int:
    """Threads that read ahead: as native/fill.c chooses (0), but one for every disk."""
    chosen = max(_FEWEST_READERS, min(len(os.sched_getaffinity(0)) // 2, _MOST_READERS))
    return disks if disks > chosen else 0


_FEWEST_READERS, _MOST_READERS = 4, 16  # those of native/fill.c


def _open_sources(index: Index | Stored) -> list[int]:
    with ExitStack() as opened:
        fds = []
        for path, blob in zip(index.paths, index.sources, strict=True):
            fds.append(open_source(path, blob.size))
            opened.callback(os.close, fds[-1])
        opened.pop_all()
        return fds
