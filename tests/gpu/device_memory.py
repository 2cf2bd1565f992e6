"""A worker that has one block of memory on the GPU, made by the driver's own calls. No PyTorch.

python -m gpu.device_memory KIND GIB PORT

KIND       plain (cuMemAlloc), managed, vmm (cuMemCreate), imported (vmm, from a descriptor),
           none: without a GPU, to try these tests

GET /health     200
GET /check      whether all that was written there is there
GET /busy       gives the GPU work for some seconds, and does not wait for it

A GIB below zero is what is to be left free.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from gpu.answering import serve

PATTERN = 0x12345678  # of the first block, and so on
BLOCK = 16 << 20  # bytes
SAMPLE = 4096  # bytes: sizes are multiples of it
COPIES = 400  # of half of it; the driver's queue holds about 1000
BUSY = 5.0  # seconds
_VMM = ("vmm", "imported")
_DESCRIPTOR = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
_PINNED, _ON_DEVICE, _WRITABLE = 1, 1, 3  # CU_MEM_ALLOCATION_TYPE…, …LOCATION_TYPE…, …ACCESS…


class _Properties(ctypes.Structure):
    """CUmemAllocationProp, of cuda.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handles", ctypes.c_int),
        ("place", ctypes.c_int * 2),
        ("security", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("place", ctypes.c_int * 2), ("flags", ctypes.c_int))


class Memory:
    """The block."""

    def __init__(self, kind: str, size: int) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._address = ctypes.c_uint64()
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._do("cuInit", 0)
        self._do("cuDeviceGet", ctypes.byref(device), 0)
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._do("cuCtxSetCurrent", context)
        self.size = size if size > 0 else self._free() + size
        size = self.size
        self._slept = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: time.sleep(BUSY))
        made = ctypes.byref(self._address)
        if kind == "managed":
            self._do("cuMemAllocManaged", made, ctypes.c_size_t(size), 1)
        elif kind in _VMM:
            self._map(imported=kind == "imported")
        else:
            self._do("cuMemAlloc_v2", made, ctypes.c_size_t(size))
        for number, at, length in self._blocks():
            place = ctypes.c_uint64(self._address.value + at)
            value = ctypes.c_uint(PATTERN + number)
            self._do("cuMemsetD32_v2", place, value, ctypes.c_size_t(length // 4))
        self._do("cuCtxSynchronize")

    def _blocks(self) -> Iterator[tuple[int, int, int]]:
        """Their numbers, places and lengths."""
        for number, at in enumerate(range(0, self.size, BLOCK)):
            yield number, at, min(BLOCK, self.size - at)

    def _free(self) -> int:
        free, whole = ctypes.c_size_t(), ctypes.c_size_t()
        self._do("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(whole))
        return free.value // SAMPLE * SAMPLE

    def _map(self, *, imported: bool) -> None:
        size, none = ctypes.c_size_t(self.size), ctypes.c_ulonglong(0)
        wanted = _Properties(_PINNED, _DESCRIPTOR if imported else 0, (_ON_DEVICE, 0))
        handle = ctypes.c_uint64()
        self._do("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(wanted), none)
        if imported:
            fd = ctypes.c_int()
            export = ctypes.byref(fd), handle, _DESCRIPTOR, none
            self._do("cuMemExportToShareableHandle", *export)
            handle = ctypes.c_uint64()
            given = ctypes.byref(handle), ctypes.c_void_p(fd.value), _DESCRIPTOR
            self._do("cuMemImportFromShareableHandle", *given)
            os.close(fd.value)
        zero = ctypes.c_size_t(0)
        made = ctypes.byref(self._address)
        self._do("cuMemAddressReserve", made, size, zero, ctypes.c_uint64(0), none)
        self._do("cuMemMap", self._address, size, zero, handle, none)
        access = _Access((_ON_DEVICE, 0), _WRITABLE)
        self._do("cuMemSetAccess", self._address, size, ctypes.byref(access), ctypes.c_size_t(1))

    def same(self) -> list[bool]:
        """Of each block whether all of it is what was written there."""
        part, found = ctypes.create_string_buffer(BLOCK), []
        for number, at, length in self._blocks():
            source = ctypes.c_uint64(self._address.value + at)
            self._do("cuMemcpyDtoH_v2", part, source, ctypes.c_size_t(length))
            wanted = (PATTERN + number).to_bytes(4, "little") * (length // 4)
            found.append(memoryview(part)[:length] == wanted)
        return found

    def work(self) -> None:
        """Have the GPU copy one half onto the other, again and again, and then wait for us."""
        half = ctypes.c_size_t(self.size // 2)
        target = ctypes.c_uint64(self._address.value + self.size // 2)
        for _ in range(COPIES):
            self._do("cuMemcpyDtoDAsync_v2", target, self._address, half, None)
        self._do("cuLaunchHostFunc", None, self._slept, None)

    def _do(self, call: str, *words: Any) -> None:
        answered = getattr(self._cuda, call)(*words)
        if answered:
            raise RuntimeError(f"{call}: {answered}")


class Ordinary:
    """The same in ordinary memory."""

    def __init__(self, size: int) -> None:
        self._held = bytearray(os.urandom(1 << 20)) * (size >> 20)
        self._first = bytes(self._held[:SAMPLE])

    def same(self) -> list[bool]:
        return [bytes(self._held[-(1 << 20) :][:SAMPLE]) == self._first]

    def work(self) -> None:
        """Nothing: there is no GPU."""


def main(kind: str, size: int, port: int) -> None:
    """Have it, and answer."""
    held = Ordinary(size) if kind == "none" else Memory(kind, size)
    answers = 0

    def answer(path: str, _query: dict[str, str]) -> dict[str, Any]:
        nonlocal answers
        if path == "/busy":
            held.work()
            return {}
        answers += 1
        return {"memory": held.same(), "answers": answers, "pid": os.getpid()}

    serve(port, answer)


if __name__ == "__main__":
    kind, gib, port = sys.argv[1:]
    main(kind, int(float(gib) * (1 << 30)) // SAMPLE * SAMPLE, int(port))
