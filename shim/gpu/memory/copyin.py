"""Files into regions of GPU memory, verified, while more of the regions are being made.

The extents are copied by threads of native/delivery.c. What is for a region that is not there yet
waits for it, so regions are best made in the order of the extents.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from shim._native import ffi, lib
from shim.errors import Damaged, RestoreFailed, ThawError
from shim.gpu.memory.answers import refused
from shim.gpu.memory.device import BUDGET, OF_THE_GPU, Region
from shim.native import check
from shim.snapshot.config import DAMAGED
from shim.snapshot.saving import SIZE

if TYPE_CHECKING:
    from shim._native import _CData

_TURN = 100  # milliseconds between two looks at the clock
_READ = 1  # stage of struct thaw_failure
_DAMAGES = {2: "is cut off", 3: "has another checksum"}


class Source(NamedTuple):
    """A file with data, open for reading for as long as the copy is."""

    name: str  # for messages
    fd: int
    size: int  # bytes that extents may lie in


class Progress(NamedTuple):
    """How far a `CopyIn` is, in bytes; see struct thaw_progress."""

    total: int  # of all extents
    direct: int  # read past the page cache
    cached: int  # read through the page cache
    done: int  # verified and in the GPU's memory


class CopyIn:
    """A copy of extents from files into regions. Nothing is begun before `prefetch` or `start`.

    Everything is verified before it goes to a GPU. What no extent covers stays zero. `cancel` and
    `progress` may be called by any thread at any time. The extents are worked on in their order:
    see extents.interleaved for several disks. `readers` and `threads` as of struct
    thaw_fill_options, 0 for a choice; `budget` is bytes of buffers that become pinned. Raises
    OSError, EINVAL if an extent cannot be right.
    """

    def __init__(
        self,
        extents: bytes,
        sources: Sequence[Source],
        *,
        readers: int = 0,
        threads: int = 0,
        budget: int = BUDGET,
    ) -> None:
        self._extents = ffi.from_buffer("struct thaw_extent[]", extents)
        self._sources = list(sources)
        self._lock = threading.Lock()  # of closing, against `cancel` and `progress`
        self._last = Progress(0, 0, 0, 0)
        files = ffi.new("struct thaw_source[]", [(source.size, source.fd) for source in sources])
        options = ffi.new("struct thaw_fill_options *", (budget, readers, threads, 0))
        made, count = ffi.new("struct thaw_fill **"), len(extents) // SIZE
        opened = lib.thaw_fill_open(files, len(sources), self._extents, count, options, made)
        check(opened, "cannot prepare to copy into GPU memory")
        self._fill: _CData = made[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prefetch(self) -> None:
        """Begin to read, as far as the budget goes; no region is needed. Raises as `wait` does."""
        begun = lib.thaw_fill_prefetch(self._native())
        if begun < 0:
            raise self._failure(begun)

    def start(self, sizes: Sequence[int], gpus: int = 1) -> None:
        """Begin to copy into regions of these sizes, in bytes, on so many GPUs, as they are added.

        The task of an extent is the number of a region. Raises as `wait` does, and ValueError if an
        extent lies outside of its region.
        """
        native, lengths = self._native(), ffi.new("uint64_t[]", sizes)
        started = lib.thaw_fill_start_device(native, lengths, len(sizes), gpus)
        if started == -errno.EINVAL and not self._told().error:
            raise ValueError("an extent lies outside of its region")
        if started < 0:
            raise self._failure(started)

    def add(self, number: int, region: Region) -> None:
        """Here is the region with that number, of the size that was said.

        It must stay until `wait` has returned or this is closed. No region need be added that no
        extent is for. Raises ValueError if it is another one; what else is wrong, `wait` says.
        """
        added = lib.thaw_fill_region(self._native(), number, region.handle())
        if added < 0:
            raise ValueError("this is not the region that was said")

    def wait(self, seconds: float | None = None) -> Progress:
        """Wait until all is in its place.

        Raises Damaged if what was read is not what it was, GpuFailed if the driver refuses,
        RestoreFailed at any other failure, if it was cancelled, or after `seconds`: in any case
        no region is touched any more then.
        """
        ends = None if seconds is None else time.monotonic() + seconds
        while (ended := lib.thaw_fill_wait(self._native(), _TURN)) == -errno.ETIMEDOUT:
            if ends is not None and time.monotonic() > ends:
                self.cancel()
                lib.thaw_fill_wait(self._fill, -1)
                done = self.progress()
                raise RestoreFailed(
                    f"GPU memory was not filled in time: {done.done} of {done.total} bytes"
                )
        if ended < 0:
            raise self._failure(ended)
        return self.progress()

    def progress(self) -> Progress:
        """How far it is."""
        with self._lock:
            if self._fill:
                now = ffi.new("struct thaw_progress *")
                lib.thaw_fill_progress(self._fill, now)
                self._last = Progress(now.total, now.direct, now.cached, now.done)
            return self._last

    def cancel(self) -> None:
        """Make it end soon: `wait` raises RestoreFailed."""
        with self._lock:
            if self._fill:
                lib.thaw_fill_cancel(self._fill)

    def close(self) -> None:
        """Cancel what is under way, wait for its end, and give everything back; again is fine."""
        self.progress()
        with self._lock:
            fill, self._fill = self._fill, ffi.NULL
        lib.thaw_fill_close(fill)

    def _native(self) -> _CData:
        if not self._fill:
            raise ValueError("the copy is closed")
        return self._fill

    def _told(self) -> _CData:
        failure = ffi.new("struct thaw_failure *")
        lib.thaw_fill_failure(self._fill, failure)
        return failure

    def _failure(self, ended: int) -> ThawError:
        failure = self._told()
        if failure.stage == OF_THE_GPU:
            return refused(failure.error, failure.call, self._place(failure.place))
        if ended == -errno.ECANCELED:
            return RestoreFailed("the copy into GPU memory was cancelled")
        where, reason = self._place(failure.place), os.strerror(failure.error or -ended)
        if failure.stage in _DAMAGES:
            return Damaged(f"{where} {_DAMAGES[failure.stage]}", hint=DAMAGED)
        if failure.stage == _READ:
            return RestoreFailed(f"cannot read {where}: {reason}", hint="is the disk well?")
        return RestoreFailed(f"cannot copy into GPU memory: {reason}")

    def _place(self, number: int) -> str:
        """The extent with that number, in words."""
        if number >= len(self._extents):
            return "GPU memory"
        extent = self._extents[number]
        return f"{self._sources[extent.source].name} at {extent.offset} ({extent.length} bytes)"
