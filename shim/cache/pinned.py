"""Memory that the driver knows and that stays where it is: native/pinned.c."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from shim import log
from shim._native import ffi, lib
from shim.gpu.memory.answers import judge
from shim.gpu.memory.device import Memory, Region
from shim.snapshot.extents import SIZE

if TYPE_CHECKING:
    from shim._native import _CData


class PinnedMemory(Memory):
    """The driver's memory calls, for one who keeps memory pinned."""

    def pin(self, uuid: bytes, memory: memoryview) -> Callable[[], None]:
        """Pin it for all GPUs, by way of the one with that UUID; what takes it back.

        Raises GpuFailed. It takes 40 to 70 milliseconds a GiB with huge pages, 200 without.
        """
        number, call = self._number(uuid), ffi.new("const char **")
        address = ffi.from_buffer("char[]", memory)
        pinned = lib.thaw_memory_pin(self._device, number, address, len(memory), call)
        judge(pinned, call, "cannot pin memory")

        def unpin() -> None:
            if lib.thaw_memory_unpin(self._device, number, address, call):
                log.warning("cannot unpin memory", bytes=len(memory))

        return unpin


def put(regions: Sequence[Region], sources: Sequence[memoryview], extents: bytes) -> None:
    """Copy extents (struct thaw_extent[]) from memory into regions, and wait for the end.

    The source of an extent is a number in `sources`, its task one in `regions`. Also after a
    failure nothing is copied any more. Raises GpuFailed; ValueError, before anything is copied, if
    an extent cannot be right.
    """
    call = ffi.new("const char **")
    with ExitStack() as stack:
        # Held no longer than the call: CPython before 3.12 may crash over memory that is still held
        # when it breaks up a cycle, and the traceback of an exception soon is in one (gh-77894).
        kept = [_memory(source, stack) for source in sources]
        copied = lib.thaw_region_put(
            ffi.new("struct thaw_region *[]", [region.handle() for region in regions]),
            len(regions),
            ffi.new("struct thaw_memory[]", kept),
            len(kept),
            stack.enter_context(ffi.from_buffer("struct thaw_extent[]", extents)),
            len(extents) // SIZE,
            call,
        )
    if copied == -errno.EINVAL:
        raise ValueError("an extent lies outside of its memory, or of its region")
    judge(copied, call, "cannot copy from the cache")


def _memory(source: memoryview, stack: ExitStack) -> tuple[_CData, int]:
    if not len(source):
        return ffi.NULL, 0
    return stack.enter_context(ffi.from_buffer("char[]", source)), len(source)
