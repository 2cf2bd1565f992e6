"""Memory opened by CUDA IPC: the driver cannot restore a program while it has such memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu_conversation import Conversation
from fakes.gpu_script import Script, script

MIB = 1 << 20

OPEN = """
class Handle(ctypes.Structure):
    _fields_ = [("words", c_uint64 * 8)]
def open_memory(which, size=1 << 20):
    at = c_uint64()
    handle = Handle((c_uint64 * 8)(which << 32, size, os.getppid()))
    call("cuIpcOpenMemHandle_v2", byref(at), handle, 1)
    return at
def close(at):
    return cuda.cuIpcCloseMemHandle(at)
alloc(2 << 20)
"""


def imported(program: Script) -> int:
    with Conversation(program.pid) as library:
        return library.about().left.get("imported", 0)


def told(program: Script, *words: str) -> Iterator[int]:
    """What is imported where the program says each of these, one after the other."""
    for word in words:
        program.reach(word)
        yield imported(program)
        program.go_on()
    program.end()


def test_memory_that_was_opened_twice_is_closed_twice(cuda: FakeCuda) -> None:
    body = f"""{OPEN}
first, second = open_memory(1), open_memory(1)
assert first.value == second.value
stop("opened")
assert close(first) == 0
stop("once")
assert close(second) == 0
stop("twice")
assert close(first) == 1
"""
    with script(cuda, body) as program:
        assert list(told(program, "opened", "once", "twice")) == [MIB, MIB, 0]


def test_memory_that_was_opened_too_often_to_count_stays(cuda: FakeCuda) -> None:
    """To refuse a checkpoint is better than to lose the worker."""
    body = f"""{OPEN}
for _ in range(4096):
    at = open_memory(1)
for _ in range(4095):
    assert close(at) == 0
stop("one")
"""
    with script(cuda, body) as program:
        assert list(told(program, "one")) == [MIB]


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ('call("cuCtxCreate_v2", byref(other), 0, 0)', 'call("cuCtxDestroy_v2", other)'),
        (
            'call("cuDevicePrimaryCtxRetain", byref(other), 1)\ncall("cuCtxSetCurrent", other)',
            'call("cuDevicePrimaryCtxRelease", 1)',
        ),
    ],
)
def test_what_was_opened_goes_with_its_context(cuda: FakeCuda, begin: str, end: str) -> None:
    """Not what was opened in another one."""
    body = f"""{OPEN}
kept = open_memory(1, 4 << 20)
other = c_void_p()
{begin}
for which in range(2, 1002):
    open_memory(which, 4096)
open_memory(2, 4096)
stop("opened")
{end}
call("cuCtxSetCurrent", context)
stop("gone")
assert close(kept) == 0
stop("closed")
"""
    with script(cuda, body) as program:
        both = 4 * MIB + 1000 * 4096
        assert list(told(program, "opened", "gone", "closed")) == [both, 4 * MIB, 0]
