"""GPU memory filled from files past this machine's memory: GPUDirect Storage, by NVIDIA's cuFile.

What is decided, by `gpu.storage`:

    ring     nothing of cuFile is loaded; the engine reads, verifies, and copies from pinned buffers
    auto     cuFile, if nvidia-fs is loaded, if at most half of what is to be read is in the page
             cache, and if cuFile, told to do without its compatibility mode, takes every file, open
             for O_DIRECT; the ring otherwise
    cufile   cuFile also in that mode, in which it is slower than the ring: to try it, and for
             storage that cuFile reaches without nvidia-fs (PCI P2PDMA), which cannot be told apart

nvidia-fs is a file of /proc, so that nodes without it pay nothing. The page cache gives the ring
more than disks give anybody. In its compatibility mode cuFile reads through memory as the ring
does, with fewer copies at once, and would not say so: it is asked to refuse instead (`allow_compat`
of cuFile 1.14 and newer; older ones are not used).

The rule of all restores stays: no byte is used before its checksum was right. This machine's
processors never see these bytes, so the GPU finds the checksums, and they are compared here.
Whatever goes wrong, also a checksum, is no more than a reason for the ring, which starts anew and
has the last word on whether a file is damaged.

The library writes a log to the working directory unless the environment forbids it: the engine
starts with CUFILE_LOGFILE_PATH (shim/engine.py).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from shim._native import ffi, lib
from shim.gpu.memory.answers import refused
from shim.gpu.memory.copyin import Source
from shim.gpu.memory.device import Region
from shim.snapshot.extents import SIZE

if TYPE_CHECKING:
    from shim._native import _CData

LIBRARY = "libcufile.so.0"
NVIDIA_FS = "/proc/driver/nvidia-fs/version"
MODULES = "/proc/modules"  # without it, as in a kernel without modules, cuFile 1.14 hangs
CALLS = (
    *("cuFileDriverOpen", "cuFileDriverClose_v2", "cuFileDriverGetProperties"),
    *("cuFileSetParameterBool", "cuFileHandleRegister", "cuFileHandleDeregister", "cuFileRead"),
)
_CACHED = 50  # of a hundred bytes that are in the page cache: from more than that on, the ring
_READ, _GPU, _CUFILE = 1, 6, 7  # stages of struct thaw_failure
_DAMAGES = {2: "is cut off", 3: "has another checksum"}

# CUfileOpError, as cufile.h has it: what may come of the calls that are made here.
_BASE = 5000
_NAMES = {
    1: "DRIVER_NOT_INITIALIZED",
    2: "DRIVER_INVALID_PROPS",
    4: "DRIVER_VERSION_MISMATCH",
    5: "DRIVER_VERSION_READ_ERROR",
    6: "DRIVER_CLOSING",
    7: "PLATFORM_NOT_SUPPORTED",
    8: "IO_NOT_SUPPORTED",
    9: "DEVICE_NOT_SUPPORTED",
    10: "NVFS_DRIVER_ERROR",
    11: "CUDA_DRIVER_ERROR",
    12: "CUDA_POINTER_INVALID",
    13: "CUDA_MEMORY_TYPE_INVALID",
    14: "CUDA_POINTER_RANGE_ERROR",
    15: "CUDA_CONTEXT_MISMATCH",
    16: "INVALID_MAPPING_SIZE",
    17: "INVALID_MAPPING_RANGE",
    18: "INVALID_FILE_TYPE",
    19: "INVALID_FILE_OPEN_FLAG",
    20: "DIO_NOT_SET",
    22: "INVALID_VALUE",
    25: "PERMISSION_DENIED",
    26: "DRIVER_ALREADY_OPEN",
    28: "HANDLE_ALREADY_REGISTERED",
    29: "DEVICE_NOT_FOUND",
    30: "INTERNAL_ERROR",
    31: "GETNEWFD_FAILED",
    33: "NVFS_SETUP_ERROR",
    34: "IO_DISABLED",
    36: "GPU_MEMORY_PINNING_FAILED",
    39: "IO_MAX_ERROR",
}


class NotDirect(Exception):
    """cuFile did not do it: the ring has to."""

    def __init__(self, reason: str, *, begun: bool = False) -> None:
        super().__init__(reason)
        self.begun = begun  # something was read: the regions may have parts of it


class Storage(NamedTuple):
    """How GPU memory is to come from files."""

    how: str = "ring"  # `gpu.storage`
    library: str = LIBRARY

    def direct(self, extents: bytes, sources: Sequence[Source]) -> Direct | None:
        """What is to be tried first; None: nothing but the ring."""
        if self.how == "ring" or not extents:
            return None
        if self.how == "auto" and not (os.path.exists(NVIDIA_FS) and is_cold(sources)):
            return None
        return Direct(extents, sources, compatible=self.how != "auto", library=self.library)


RING = Storage()


def is_cold(sources: Sequence[Source]) -> bool:
    """Whether most of it has to come from disks, as far as samples tell."""
    return lib.thaw_direct_cached(_files(sources), len(sources)) <= _CACHED


class Direct:
    """A copy of extents from files into regions, by cuFile; once. Nothing is begun by making one.

    Extents and sources as of a CopyIn, which has looked at them. `cancel` may be called by any
    thread at any time.
    """

    def __init__(
        self,
        extents: bytes,
        sources: Sequence[Source],
        *,
        compatible: bool,
        library: str = LIBRARY,
        threads: int = 0,
    ) -> None:
        self._extents = ffi.from_buffer("struct thaw_extent[]", extents)
        self._count = len(extents) // SIZE
        self._sources = list(sources)
        self._compatible = compatible
        self._library = library
        self._threads = threads
        self._failure: NotDirect | None = None
        self._opening: threading.Thread | None = None
        self._cufile: _CData = ffi.NULL
        self._lock = threading.Lock()  # of closing, against `cancel`
        self._direct: _CData = ffi.NULL
        self._cancelled = False

    def prepare(self) -> None:
        """Begin to load the library, which looks at each of the machine's GPUs; again is fine."""
        if self._opening is None:
            self._opening = threading.Thread(target=self._load, daemon=True)
            self._opening.start()

    def open(self) -> None:
        """Wait until that is done. Raises NotDirect."""
        self.prepare()
        assert self._opening is not None
        self._opening.join()
        if self._failure is not None:
            raise self._failure

    def fill(self, regions: Sequence[Region]) -> None:
        """Fill the regions, and compare all checksums. Raises NotDirect.

        In any case nothing is written to them any more afterwards.
        """
        self.open()
        failure = ffi.new("struct thaw_failure *")
        self._register(failure)
        natives = ffi.new("struct thaw_region *[]", [region.handle() for region in regions])
        ran = lib.thaw_direct_run(self._direct, natives, len(regions), self._threads, failure)
        if ran < 0:
            raise NotDirect(self._words(ran, failure), begun=ran != -errno.EINVAL)

    def cancel(self) -> None:
        """Make it end soon."""
        with self._lock:
            self._cancelled = True
            if self._direct:
                lib.thaw_direct_cancel(self._direct)

    def close(self) -> None:
        """Give everything back, when `fill` has returned; again is fine."""
        if self._opening is not None:
            self._opening.join()
        with self._lock:
            direct, self._direct = self._direct, ffi.NULL
        lib.thaw_direct_close(direct)
        cufile, self._cufile = self._cufile, ffi.NULL
        lib.thaw_cufile_close(cufile)

    def _load(self) -> None:
        if not os.path.exists(MODULES):
            self._failure = NotDirect(f"there is no {MODULES}")
            return
        made, call = ffi.new("struct thaw_cufile **"), ffi.new("const char **")
        why = ffi.new("char[]", 1024)
        path = os.fsencode(self._library)
        opened = lib.thaw_cufile_open(path, self._compatible, made, call, why, len(why))
        reason = ffi.string(why).decode(errors="replace")
        if opened > 0:
            self._failure = NotDirect(answered(opened, ffi.string(call[0]).decode()))
        elif opened == -errno.ENOSYS:
            self._failure = NotDirect(f"{self._library} is too old: it lacks {reason}")
        elif opened < 0:
            self._failure = NotDirect(reason or os.strerror(-opened))
        else:
            self._cufile = made[0]

    def _register(self, failure: _CData) -> None:
        """Make the files known to it. Raises NotDirect."""
        made, count = ffi.new("struct thaw_direct **"), len(self._sources)
        files = _files(self._sources)
        with self._lock:
            if self._cancelled:
                raise NotDirect(os.strerror(errno.ECANCELED))
            opened = lib.thaw_direct_open(
                self._cufile, files, count, self._extents, self._count, made, failure
            )
            self._direct = made[0]
        if opened < 0:
            raise NotDirect(self._words(opened, failure))

    def _words(self, ended: int, failure: _CData) -> str:
        where = self._place(failure.place)
        if failure.stage == _READ:
            return f"cannot read {where}: {os.strerror(failure.error)}"
        if failure.stage in _DAMAGES:
            return f"{where} {_DAMAGES[failure.stage]}"
        if failure.stage == _GPU:
            return str(refused(failure.error, failure.call, where))
        if failure.stage == _CUFILE:
            return f"{where}: {answered(failure.error, ffi.string(failure.call).decode())}"
        return os.strerror(failure.error or -ended)

    def _place(self, number: int) -> str:
        """The extent with that number, in words."""
        if number >= self._count:
            return "a file"
        extent = self._extents[number]
        return f"{self._sources[extent.source].name} at {extent.offset}"


def answered(error: int, call: str) -> str:
    """What cuFile's function of that name has said, in words."""
    name = _NAMES.get(error - _BASE, "error")
    return f"{call}: {name} ({error})"


def _files(sources: Sequence[Source]) -> _CData:
    return ffi.new("struct thaw_source[]", [(source.size, source.fd) for source in sources])
