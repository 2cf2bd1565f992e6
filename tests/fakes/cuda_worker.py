"""A process that uses CUDA as far as tests can tell: it has the fake driver's library mapped.

    cuda_worker.py LIBRARY [init]   then, for each line on stdin: a number of bytes to map, as the
                                    driver does for device memory; it prints the address

With `init` it calls cuInit, and its state is in its own memory; else the fake driver keeps it.

Started by `Workers`, which tells the fake driver of it, too.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:  # the process itself has no path to it
    from fakes.cuda import FakeCuda


class Workers:
    """Processes that the driver knows, ended with the block.

    `real`: they have called cuInit, so that the driver notices by itself if one is killed.
    """

    def __init__(self, cuda: FakeCuda, count: int, *, real: bool = False) -> None:
        self.cuda = cuda
        self._real = real
        self._processes = [start(cuda, real=real) for _ in range(count)]
        for process in self._processes:
            if not real:
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
        if not self._real:
            self.cuda.remove(pid)

    def ended(self, pid: int) -> int | None:
        """The exit status; minus the signal that killed it; None while it runs."""
        return self._of(pid).poll()

    def _of(self, pid: int) -> subprocess.Popen[str]:
        return next(process for process in self._processes if process.pid == pid)


def start(cuda: FakeCuda, *, real: bool = False) -> subprocess.Popen[str]:
    """One process, once it has mapped the library."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-IS", __file__, cuda.library, *(["init"] if real else [])]
    env = {name: text for name, text in os.environ.items() if name not in cuda.environment}
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def main(library: str, *words: str) -> None:
    """Map what is asked for, and keep it."""
    driver, kept = ctypes.CDLL(library), []
    if words:
        driver.cuInit(0)
    print("ready", flush=True)
    for line in sys.stdin:
        area = mmap.mmap(-1, int(line), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        kept.append(area)
        print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)
    del driver


if __name__ == "__main__":
    main(*sys.argv[1:])
