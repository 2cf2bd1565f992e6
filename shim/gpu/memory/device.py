"""Device memory of this process's own, and copies between it and files: native/device.c.

A `Region` is one piece of physical memory on a GPU, mapped here. It is either made (`create`: a
worker gets it by a descriptor) or a worker's own (`take`: the worker may let go of it then, it
lives on as long as the region does). A region's bytes do not depend on any process's address space.

    out     scan every region for what is not zero → `laid_out` → files → `CopyOut`
    in      `create` regions (all zeros) → copyin.CopyIn from the files → `descriptor` → the worker

Data in files is compact: `laid_out` gives the stretches that are not zero places one after the
other, and everything else of a region is zero. An extent (struct thaw_extent) is as in the index of
memory, but its task is the number of a region and its address a place in there.

The driver is initialised when the first GPU is used. Any thread may call, but one at a time for one
object, except where it says so: several may make regions.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from shim._native import ffi, lib
from shim.errors import GpuFailed, Unfit
from shim.gpu.driver import LIBRARY
from shim.gpu.memory.answers import judge, refused
from shim.native import check
from shim.snapshot.layout import BULK, Run, packed
from shim.snapshot.pieces import PIECE
from shim.snapshot.saving import SIZE, Saving

if TYPE_CHECKING:
    from shim._native import _CData

CHUNK = 64 << 10  # bytes: what is looked at for zeros at once, and never stored in parts
GRANULARITY = 2 << 20  # bytes: sizes of regions are multiples of it
BUDGET = 256 << 20  # bytes of pinned buffers, unless told otherwise; pinning takes time, too
OF_THE_GPU = 6  # stage of struct thaw_failure
_TOO_OLD = "install an NVIDIA driver from 570 on"
_NOT_ZERO = re.compile(rb"[^\0]+")


class Memory:
    """The driver's memory calls, and the GPUs of which this process has a context.

    Close its regions and copies before it.
    """

    def __init__(self, device: _CData) -> None:
        self._device = device

    @classmethod
    def open(cls, library: str = LIBRARY) -> Self:
        """Load the driver; nothing is asked of a GPU yet.

        Raises Unfit if there is none, or with the names of the calls that it lacks.
        """
        device, why = ffi.new("struct thaw_device **"), ffi.new("char[]", 1024)
        opened = lib.thaw_device_open(os.fsencode(library), device, why, len(why))
        reason = ffi.string(why).decode(errors="replace")
        if opened == -errno.ELIBACC:
            raise Unfit(f"no CUDA driver: {reason}", hint=_TOO_OLD)
        if opened == -errno.ENOSYS:
            raise Unfit(f"{library} is too old: it lacks {reason}", hint=_TOO_OLD)
        check(opened, "cannot load", library)
        _allow_descriptors()
        return cls(device[0])

    def use(self, uuid: bytes) -> None:
        """Have the driver make its context on a GPU early: 0.1 to 0.3 seconds. Raises GpuFailed."""
        self._number(uuid)

    def create(self, uuid: bytes, size: int, *, rdma: bool = False) -> Region:
        """Make memory of `size` bytes, all zeros, that can be handed to other processes.

        `uuid` (16 bytes) says on which GPU; `size` is a multiple of GRANULARITY. `rdma`: network
        cards are to reach it, where they reach any. Raises GpuFailed: OUT_OF_MEMORY if there is no
        room; ValueError for nonsense.
        """
        made, call = self._begin(size)
        number = self._number(uuid)
        answered = lib.thaw_region_create(self._device, number, size, rdma, made, call)
        judge(answered, call, "cannot make GPU memory")
        return Region(made[0], uuid, size)

    def take(self, uuid: bytes, size: int, fd: int) -> Region:
        """Take part in memory that another process has exported as the descriptor `fd`.

        It stays the caller's to close. The memory is `size` bytes, on that GPU. Raises GpuFailed;
        ValueError for nonsense.
        """
        made, call = self._begin(size)
        answered = lib.thaw_region_import(self._device, self._number(uuid), size, fd, made, call)
        judge(answered, call, "cannot take part in GPU memory")
        return Region(made[0], uuid, size)

    def close(self) -> None:
        """Give the contexts back. The library stays loaded."""
        device, self._device = self._device, ffi.NULL
        lib.thaw_device_close(device)

    def _begin(self, size: int) -> tuple[_CData, _CData]:
        if size <= 0 or size % GRANULARITY:
            raise ValueError(f"{size} bytes are no size of GPU memory")
        return ffi.new("struct thaw_region **"), ffi.new("const char **")

    def _number(self, uuid: bytes) -> int:
        if len(uuid) != 16:
            raise ValueError("a GPU's UUID has 16 bytes")
        if not self._device:
            raise ValueError("the driver's memory calls are closed")
        number, call = ffi.new("uint32_t *"), ffi.new("const char **")
        answered = lib.thaw_device_use(self._device, uuid, number, call)
        if answered == -errno.ENODEV:
            raise GpuFailed(f"the driver has no GPU {uuid.hex()}", hint="nvidia-smi -L lists them")
        judge(answered, call, "cannot use a GPU")
        return int(number[0])


class Region:
    """Memory on one GPU in which this process shares, until it is closed; others may go on."""

    def __init__(self, region: _CData, uuid: bytes, size: int) -> None:
        self._native = region
        self._file = -1
        self._exporting = threading.Lock()
        self.uuid = uuid  # the GPU's
        self.size = size  # bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def descriptor(self) -> int:
        """A new descriptor that stands for the memory in other processes: the caller's to close.

        It keeps the memory, too. Only of what was made here, not taken. Raises GpuFailed. Any
        thread may call, also while another one calls `share`.
        """
        self.share()
        return os.dup(self._file)

    def share(self) -> None:
        """Have the driver make the one of which `descriptor` hands out copies, ahead of need.

        It takes 1 ms, and one at a time (H100). Raises GpuFailed.
        """
        with self._exporting:
            if self._file >= 0:
                return
            file, call = ffi.new("int *"), ffi.new("const char **")
            answered = lib.thaw_region_export(self.handle(), file, call)
            judge(answered, call, "cannot hand GPU memory on")
            self._file = int(file[0])

    def scan(self) -> bytes:
        """One byte for each CHUNK, in order: 0 if it is all zeros.

        At the speed of the GPU's memory, or, where the driver cannot run our little kernel, as
        fast as it is copied to here. Nobody may write to the region meanwhile. Raises GpuFailed.
        """
        count = self.size // CHUNK
        flags, call = bytearray(count), ffi.new("const char **")
        array = ffi.from_buffer("unsigned char[]", flags, require_writable=True)
        answered = lib.thaw_region_scan(self.handle(), array, count, call)
        judge(answered, call, "cannot look at GPU memory")
        return bytes(flags)

    def copy_to(self, other: Region) -> None:
        """Copy all of it into one of the same size on the same GPU. Raises GpuFailed."""
        call = ffi.new("const char **")
        answered = lib.thaw_region_copy(self.handle(), other.handle(), call)
        judge(answered, call, "cannot copy GPU memory")

    def close(self) -> None:
        """Let go of it; again is fine. Raises GpuFailed, and it is closed all the same."""
        region, self._native = self._native, ffi.NULL
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
        call = ffi.new("const char **")
        judge(lib.thaw_region_close(region, call), call, "cannot let go of GPU memory")

    def handle(self) -> _CData:
        """Of struct thaw_region. Raises ValueError if it is closed."""
        if not self._native:
            raise ValueError("the region is closed")
        return self._native


def laid_out(scans: Sequence[bytes], piece: int = PIECE) -> tuple[list[Run], list[int]]:
    """Where what is not zero goes: runs for `CopyOut`, and the sizes of the files in bytes.

    `scans` are those of regions, by number (`Run.task`). A file (`Run.source`) is full up to
    `piece` bytes, a multiple of CHUNK, before the next begins; no run lies in two. The runs are in
    the order of the files: deal them with layout.by_turns if these are on several disks.
    """
    runs: list[Run] = []
    end = 0  # as if the files were one
    for number, scan in enumerate(scans):
        for found in _NOT_ZERO.finditer(scan):
            address, left = found.start() * CHUNK, len(found[0]) * CHUNK
            while left:
                length = min(left, piece - end % piece)
                runs.append(Run(address, end % piece, length, number, end // piece, BULK))
                address, left, end = address + length, left - length, end + length
    return runs, [min(piece, end - at) for at in range(0, end, piece)]


class CopyOut(Saving):
    """A copy out of regions into files, under way from here on; closing it gives it up.

    `runs` as `laid_out` has made them, in any order; `files` are names and descriptors, open for
    writing, best with O_DIRECT, and as long as they shall be. `budget` is how many bytes may be
    read and not yet written. Regions and files must stay until this is closed.

    All it does is as Saving has it, but that the driver's failures are GpuFailed. The regions are
    needed no longer after `wait_read`; the extents that `finish` answers come by source, then
    offset, and none is longer than 4 MiB.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        runs: Iterable[Run],
        files: Sequence[tuple[str, int]],
        *,
        threads: int = 0,
        budget: int = BUDGET,
    ) -> None:
        records = packed(runs)
        self._runs = ffi.from_buffer("struct thaw_run[]", records)
        self._files = files
        self._regions = list(regions)
        save = ffi.new("struct thaw_save **")
        started = lib.thaw_save_start_device(
            ffi.new("int[]", [fd for _, fd in files]),
            len(files),
            self._runs,
            len(records) // SIZE,
            _natives(regions),
            len(regions),
            threads,
            budget,
            save,
        )
        check(started, "cannot begin to copy GPU memory")
        self._began(save[0])

    def _failure(self, failure: _CData) -> Exception:
        if failure.stage == OF_THE_GPU:
            return refused(failure.error, failure.call, self._where(failure.place))
        return super()._failure(failure)


def _natives(regions: Sequence[Region]) -> _CData:
    return ffi.new("struct thaw_region *[]", [region.handle() for region in regions])


def _allow_descriptors() -> None:
    """As many as the system lets us have: each piece of a worker's memory is one, of thousands.

    The soft limit is for programs that use select(2), and none of them is ours.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
