"""Programs that call what they like of CUDA, in Python: they find it by dlsym(3).

    with script(cuda, "at = alloc(2 << 20); stop('made')") as program:
        program.reach("made")
        …
        program.go_on()
        program.end()

They run with the GPU memory library, on the fake driver, and see two GPUs. There are `call`, which
has to go well, `alloc`, `free`, and `stop`, which waits for `go_on`.
"""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fakes.cuda import FakeCuda
from fakes.gpu import environment
from fakes.gpu_conversation import LIBRARY, Conversation
from fakes.settled import PATIENCE

BEGIN = """
import ctypes, os, sys
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    result = getattr(cuda, name)(*arguments)
    assert result == 0, f"{name}: {result}"
def alloc(size):
    at = c_uint64()
    call("cuMemAlloc_v2", byref(at), c_size_t(size))
    return at
def free(at):
    return cuda.cuMemFree_v2(at)
def stop(word):
    print(word, flush=True)
    assert sys.stdin.readline()
context = c_void_p()
"""
INIT = """
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", byref(context), 0)
call("cuCtxSetCurrent", context)
"""


class Script:
    """Such a program; it stops and goes on line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def reach(self, word: str) -> None:
        """Wait until it has come there."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line == word, (line, self._process.communicate()[1] if not line else "")

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def hear(self) -> None:
        """Wait until it says something on stderr."""
        assert self._process.stderr is not None
        assert select.select([self._process.stderr], [], [], PATIENCE)[0]

    def end(self) -> str:
        """Let it come to its end, which is a good one; what it said on stderr."""
        _, said = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, said
        return said

    @property
    def movable(self) -> int:
        with Conversation(self.pid) as library:
            return library.about().movable


@contextmanager
def script(cuda: FakeCuda, body: str, before: str = "") -> Iterator[Script]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", BEGIN + before + INIT + body],
        env=environment(cuda, "0,1") | {"LD_PRELOAD": LIBRARY},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
    )
    try:
        yield Script(process)
    finally:
        process.kill()
        process.communicate()
