"""The CUDA driver's checkpoint calls, for other processes; only the engine asks it.

A process is "running"; `lock` holds its CUDA calls, `checkpoint` brings its device memory into its
own memory, and then it has nothing to do with a GPU any more and CRIU can dump it. `restore` and
`unlock` are the way back. Nobody in the process takes part: a thread of the driver does it there.

Each call takes as long as it takes (a checkpoint about 2 GiB a second) and lets the interpreter go
meanwhile, so that threads ask for several processes at once. It cannot be given up, and no signal
interrupts it. Which calls there are is found out by looking; `_REMAPS` is the one thing that only
a version tells. What the calls do is in the CUDA driver API reference, "CUDA Checkpointing".

What that does not say, measured on an H100 with driver 580.159.04: every call answers 304
(OPERATING_SYSTEM) for a process that there is not, and 3 (NOT_INITIALIZED) for a zombie and for one
that has never called cuInit. If the process is killed, a call for it that is under way returns at
once, with 304. Calls in the wrong order answer 401 (ILLEGAL_STATE) and do no harm.
"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from shim._native import ffi, lib
from shim.errors import GpuFailed, Unfit
from shim.gpu.results import INVALID_VALUE, NOT_INITIALIZED, OPERATING_SYSTEM, result
from shim.gpu.watch import Watch
from shim.native import check

if TYPE_CHECKING:
    from shim._native import _CData

LIBRARY = "libcuda.so.1"
_STATES = ("running", "locked", "checkpointed", "failed", "checkpointing", "restoring")
_UUID = 16  # bytes
_FOR_EVER = (1 << 32) - 1  # milliseconds: 49 days
# The first driver (580) that takes GPU pairs. For the ones before, their place is reserved.
_REMAPS = 13000
_TOO_OLD = "install an NVIDIA driver from 570 on; from 580 on it can restore onto other GPUs"

Pairs = Sequence[tuple[bytes, bytes]]


class Driver:
    """libcuda, loaded for as long as this process lives. Any thread may call.

    Every call but `open` raises GpuFailed with the driver's answer in words, and does `init` first
    if nobody has: the driver answers nothing before.
    """

    version: int
    """The newest CUDA that it knows: 13000 for 13.0. It comes with the driver, 12080 with 570."""
    storage: bool
    """Whether `Operation` is possible (driver 615)."""

    def __init__(self, cuda: _CData, version: int) -> None:
        self._cuda = cuda
        self._lock = threading.Lock()
        self._ready = False
        self.version = version
        self.storage = bool(lib.thaw_cuda_has_storage(cuda))

    @classmethod
    def open(cls, library: str = LIBRARY) -> Driver:
        """Load it; a matter of milliseconds, as nothing is asked of a GPU yet.

        Raises Unfit if there is none, if it lacks a call, or if it is not the driver's own.
        """
        cuda, why = ffi.new("struct thaw_cuda **"), ffi.new("char[]", 1024)
        opened = lib.thaw_cuda_open(os.fsencode(library), cuda, why, len(why))
        if opened < 0:
            raise _not_usable(library, opened, ffi.string(why).decode(errors="replace"))
        version = ffi.new("int *")
        answered = lib.thaw_cuda_version(cuda[0], version)
        if answered:
            said = result(answered, "cuDriverGetVersion")
            raise Unfit(f"{library} is of no use: {said.name}: {said.sentence}", hint=said.hint)
        return cls(cuda[0], version[0])

    def init(self) -> None:
        """Have the driver look at all GPUs, once; the first process on a node waits 0.2 s.

        Who comes second waits for the first. After a failure the next one tries again.
        """
        with self._lock:
            if not self._ready:
                _judge("cuInit", lib.thaw_cuda_init(self._cuda))
                self._ready = True

    def state(self, pid: int) -> str | None:
        """What the process is: running, locked, checkpointed or failed.

        None: the driver does not know it, because it does not use CUDA or has ended. Whoever has
        called cuInit, and nothing else, is running. During an `Operation` it is checkpointing or
        restoring. Takes processes only: with the id of a thread the driver would answer for its
        process.
        """
        self.init()
        state = ffi.new("int *")
        answered = lib.thaw_cuda_state(self._cuda, pid, state)
        # The reference has INVALID_VALUE for those that use no CUDA; 580.159.04 has the other.
        if answered in (INVALID_VALUE, NOT_INITIALIZED):
            return None
        if answered == OPERATING_SYSTEM and _has_ended(pid):
            return None
        _judge("cuCheckpointProcessGetState", answered, pid)
        if 0 <= state[0] < len(_STATES):
            return _STATES[state[0]]
        raise GpuFailed(
            f"cuCheckpointProcessGetState of process {pid}: state {state[0]}",
            hint="the driver is newer than what Thaw knows of it",
        )

    def lock(self, pid: int, seconds: float) -> None:
        """Wait at most so long for its CUDA work to end, and hold new calls from then on.

        After a failure it runs on. NOT_READY if the time was too short: the driver keeps to it
        within a millisecond.
        """
        self.init()
        # Zero would be for ever.
        milliseconds = max(1, math.ceil(min(seconds * 1000, _FOR_EVER)))
        answered = lib.thaw_cuda_lock(self._cuda, pid, milliseconds)
        _judge("cuCheckpointProcessLock", answered, pid)

    def checkpoint(self, pid: int) -> None:
        """Bring the locked process's device memory into its own, and let go of its GPUs.

        NOT_SUPPORTED if it has managed memory: it is locked as before then, and an unlock helps. It
        succeeds, though, if memory of another process is mapped, and no restore does afterwards.
        """
        self.init()
        answered = lib.thaw_cuda_checkpoint(self._cuda, pid)
        _judge("cuCheckpointProcessCheckpoint", answered, pid)

    def restore(self, pid: int, pairs: Pairs = ()) -> None:
        """Bring it back onto its GPUs: it is locked again.

        `pairs` are the UUIDs (16 bytes) of all GPUs that it had and of those that it gets; without,
        it gets the same. Raises Unfit, before anything is done, if the driver cannot do that.

        After INVALID_VALUE, for a UUID that is nobody's, it may be called again. Not so after
        OUT_OF_MEMORY: the second attempt answers 304, whatever is free by then, and the third has
        not returned within a minute. The process is lost, as it is after NOT_SUPPORTED.
        """
        self.init()
        moved = self._moved(pairs)
        answered = lib.thaw_cuda_restore(self._cuda, pid, moved, len(moved))
        _judge("cuCheckpointProcessRestore", answered, pid)

    def unlock(self, pid: int) -> None:
        """Let its CUDA calls go on."""
        self.init()
        _judge("cuCheckpointProcessUnlock", lib.thaw_cuda_unlock(self._cuda, pid), pid)

    def restore_thread(self, pid: int) -> int:
        """The id of the thread in the process that works for the driver."""
        self.init()
        thread = ffi.new("int *")
        answered = lib.thaw_cuda_restore_thread(self._cuda, pid, thread)
        _judge("cuCheckpointProcessGetRestoreThreadId", answered, pid)
        return int(thread[0])

    def begin_checkpoint(self, pid: int) -> Operation:
        """As `checkpoint`, but its device memory is mapped here, for the caller to copy it out.

        The caller holds the primary contexts of all GPUs concerned. Raises Unfit without `storage`.
        """
        self._need_storage()
        self.init()
        operation = ffi.new("struct thaw_cuda_operation *")
        answered = lib.thaw_cuda_checkpoint_start(self._cuda, pid, operation)
        _judge("cuCheckpointProcessCheckpoint", answered, pid)
        return Operation(self._cuda, pid, operation)

    def begin_restore(self, pid: int, pairs: Pairs = ()) -> Operation:
        """As `restore`, but its device memory is mapped here, for the caller to copy it in."""
        self._need_storage()
        self.init()
        moved = self._moved(pairs)
        operation = ffi.new("struct thaw_cuda_operation *")
        answered = lib.thaw_cuda_restore_start(self._cuda, pid, moved, len(moved), operation)
        _judge("cuCheckpointProcessRestore", answered, pid)
        return Operation(self._cuda, pid, operation)

    def _need_storage(self) -> None:
        if not self.storage:
            raise Unfit(
                "the CUDA driver does all copying of device memory itself",
                hint="install an NVIDIA driver from 615 on",
            )

    def _moved(self, pairs: Pairs) -> _CData:
        """The pairs for the driver: none if every GPU stays itself, which all drivers can do."""
        if any(len(before) != _UUID or len(after) != _UUID for before, after in pairs):
            raise ValueError(f"a GPU's UUID has {_UUID} bytes")
        moves = any(before != after for before, after in pairs)
        if moves and self.version < _REMAPS:
            known = f"{self.version // 1000}.{self.version % 1000 // 10}"
            raise Unfit(
                f"the driver (CUDA {known}) cannot restore onto other GPUs than before",
                hint="install an NVIDIA driver from 580 on",
            )
        array = ffi.new("struct thaw_cuda_pair[]", len(pairs) if moves else 0)
        for at in range(len(array)):
            ffi.buffer(array)[at * 2 * _UUID : (at + 1) * 2 * _UUID] = b"".join(pairs[at])
        return array


class Mapping(NamedTuple):
    """All the memory that a process has on one GPU, where it can be copied from or to."""

    address: int
    """A device pointer of this process."""
    size: int
    """Bytes."""
    stream: int
    """A CUstream of that GPU's primary context; what is enqueued there is waited for."""


class Operation:
    """A checkpoint or restore that waits for its copies; leaving the block completes it.

    Also after a failure: the driver knows no other way out, and the process is good for nothing
    then, as its memory is not where it should be.
    """

    def __init__(self, cuda: _CData, pid: int, operation: _CData) -> None:
        self._cuda, self._pid, self._operation = cuda, pid, operation
        self.mappings = [
            Mapping(at.address, at.size, int(ffi.cast("uintptr_t", at.stream)))
            for at in (operation.mappings[n] for n in range(operation.count))
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        answered = lib.thaw_cuda_complete(self._cuda, self._operation)
        _judge("cuCheckpointOperationComplete", answered, self._pid)


def _judge(call: str, answered: int, pid: int = 0) -> None:
    """Nothing if it went well; GpuFailed with the driver's answer; OSError if it was not asked."""
    if check(answered, call):
        said = result(answered, call)
        whose = f" of process {pid}" if pid else ""
        raise GpuFailed(f"{call}{whose}: {said.name}: {said.sentence}", hint=said.hint)


def _has_ended(pid: int) -> bool:
    """Also if it is a zombie."""
    try:
        with Watch([pid]) as watch:
            return bool(watch.ended())
    except OSError:  # it is a thread's
        return False


def _not_usable(library: str, error: int, why: str) -> Exception:
    if error == -errno.ELIBACC:
        return Unfit(f"no CUDA driver: {why}", hint=_TOO_OLD)
    if error == -errno.ENOSYS:
        return Unfit(f"{library} is too old: it lacks {why}", hint=_TOO_OLD)
    return OSError(-error, os.strerror(-error), library)
