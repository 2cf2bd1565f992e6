"""A process with memory of many kinds, which says "ready" and sleeps: sleeper.py FILE [MIB].

Nothing in it changes while it sleeps, so that it can be dumped again and again. FILE is made. With
MIB there is that much more private memory of random bytes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from random import Random

MIB = 1 << 20
keep: list[object] = []


def area(size: int, flags: int = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, fd: int = -1) -> mmap.mmap:
    made = mmap.mmap(fd, size, flags)
    keep.append(made)
    return made


def private() -> mmap.mmap:
    """Data, single bytes, zeros that were written, and what was never written."""
    made = area(24 * MIB)
    made[: 9 * MIB] = Random(1).randbytes(9 * MIB)
    made[10 * MIB : 11 * MIB] = bytes(MIB)
    made[12 * MIB : 12 * MIB + 100] = b"y" * 100
    for at in range(16 * MIB, 20 * MIB, 2 * mmap.PAGESIZE):
        made[at] = 7
    return made


def shared() -> None:
    made = area(6 * MIB, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    made[: 3 * MIB] = Random(2).randbytes(3 * MIB)
    partly = os.memfd_create("partly mapped")
    os.ftruncate(partly, 8 * MIB)
    area(2 * MIB, mmap.MAP_SHARED, partly)[:] = Random(3).randbytes(2 * MIB)
    os.pwrite(partly, b"beyond" * 10000, 5 * MIB)
    unmapped = os.memfd_create("not mapped")
    os.write(unmapped, Random(4).randbytes(MIB))


def hidden(libc: ctypes.CDLL) -> None:
    """Pages in an area that may not be read any longer."""
    made = area(MIB)
    made[:] = Random(5).randbytes(MIB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(made))
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(MIB), 0) == 0


def of_a_file(path: str) -> None:
    with open(path, "w+b") as file:
        file.write(Random(6).randbytes(MIB))
        file.flush()
        made = area(MIB, mmap.MAP_PRIVATE, file.fileno())
    made[1000:400000] = b"z" * 399000


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    common = private()
    shared()
    hidden(libc)
    of_a_file(sys.argv[1])
    ready, tell = os.pipe()
    if os.fork() == 0:
        common[MIB : 2 * MIB] = Random(8).randbytes(MIB)
        os.write(tell, b"x")
    else:
        os.read(ready, 1)
        if len(sys.argv) > 2:
            more = area(int(sys.argv[2]) * MIB)
            for at in range(0, len(more), MIB):
                more[at : at + MIB] = os.urandom(MIB)
        print("ready", flush=True)
    while True:
        time.sleep(1000)


if __name__ == "__main__":
    main()
