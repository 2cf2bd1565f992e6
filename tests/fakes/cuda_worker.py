"""A process that uses CUDA as far as tests can tell: it has the fake driver's library mapped.

    cuda_worker.py LIBRARY     then, for each line on stdin: a number of bytes to map, as the driver
                               does for device memory; it prints the address

Started by `Workers`, which tells the fake driver of it, too.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:  # the process itself has no path to it
    from fakes.cuda import FakeCuda


class Workers:
    """Processes that the driver knows, ended with the block."""

    def __init__(self, cuda: FakeCuda, count: int) -> None:
        self.cuda = cuda
        self._processes = [start(cuda) for _ in range(count)]
        for process in self._processes:
            cuda.add(process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    @property
    def pids(self) -> list[int]:
        return sorted(process.pid for process in self._processes)

    @property
    def states(self) -> list[str]:
        """What the driver has of them, in the order of `pids`."""
        return [self.cuda.state(pid) for pid in self.pids]

    def map(self, pid: int, size: int) -> int:
        """Have a process map memory; its address."""
        process = self._of(pid)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{size}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    def kill(self, pid: int) -> None:
        """End a process; the driver knows nothing of it any more."""
        process = self._of(pid)
        process.kill()
        process.wait()
        self.cuda.remove(pid)

    def _of(self, pid: int) -> subprocess.Popen[str]:
        return next(process for process in self._processes if process.pid == pid)


def start(cuda: FakeCuda) -> subprocess.Popen[str]:
    """One process, once it has mapped the library."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-IS", __file__, cuda.library]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def main(library: str) -> None:
    """Map what is asked for, and keep it."""
    driver, kept = ctypes.CDLL(library), []
    print("ready", flush=True)
    for line in sys.stdin:
        area = mmap.mmap(-1, int(line), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        kept.append(area)
        print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)
    del driver


if __name__ == "__main__":
    main(sys.argv[1])
