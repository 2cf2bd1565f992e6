"""The gate of the GPU memory library: while it is closed, no call that touches the GPU goes on."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu import Program
from fakes.gpu_conversation import LIBRARY, Conversation
from fakes.gpu_script import Script, script
from fakes.settled import eventually

from shim.gpu.memory.wire import Answer, Kind, State, Status

SECONDS = 30.0
QUIET = 0.05  # seconds in which something would have happened


@pytest.fixture
def program(cuda: FakeCuda) -> Iterator[Program]:
    with Program(cuda, preload=LIBRARY, gpus="0,1") as started:
        for number, command in enumerate(("alloc 4M", "plain 2M", "alloc 4M", "async 1M"), 1):
            assert started.number(command) == number
        started.ask("capture 1 3")
        yield started


def silent(program: Program) -> bool:
    """Whether no answer comes, for as long as one would take."""
    assert program.process.stdout is not None
    return not select.select([program.process.stdout], [], [], QUIET)[0]


COMMANDS = """set 1 5|copy 1 3|replay|build 1 4|instantiate|change 1 6|sum 1|launch 1 2|alloc 2M
alloc 4K|free 3|plain 2M|unmap 2|map 2|retain 2|props 2|release 2|range 1|attr 1|async 1M|free 4
managed 1M|pitch 4096 512|ipc 1|peer 1|nopeer 1|access 1 0|query|synchronize|record|await"""


def test_every_kind_of_call_waits(program: Program, library: Conversation) -> None:
    for command in COMMANDS.replace("\n", "|").split("|"):
        assert not library.hold().status, command
        program.tell(command)
        assert silent(program), command
        assert not library.ask(Kind.OPEN).status
        if command != "ipc 1":  # which is refused, as it must be
            program.answer()
        else:
            with pytest.raises(Exception, match="801"):
                program.answer()


def test_a_graph_is_built_only_once_its_memory_is_back(
    program: Program, library: Conversation
) -> None:
    """The driver looks the addresses up, and would say that they are wrong."""
    steps = {"build 1 5": "built", "instantiate": "ready", "change 1 6": "changed"}
    for command, said in steps.items():
        memory, fds = library.emptied()
        program.tell(command)
        assert silent(program), command
        assert not library.give(memory, fds).status
        assert not library.ask(Kind.OPEN).status
        assert program.answer() == said
    program.ask("set 3 6")
    program.ask("replay")
    assert program.ask("sum 1") == program.ask("sum 3")


def test_a_thread_that_launches_all_the_time_is_held_and_goes_on(
    program: Program, library: Conversation
) -> None:
    program.ask("spin 1")
    for _ in range(3):
        assert not library.hold().status
        # The thread may have to count one more that it had launched before.
        most = int(program.ask("count")) + 1
        time.sleep(QUIET)
        assert int(program.ask("count")) <= most
        memory, fds = library.export()
        assert not library.ask(Kind.EMPTY).status
        assert int(program.ask("count")) <= most
        assert not library.give(memory, fds).status
        assert not library.ask(Kind.OPEN).status
        end = time.monotonic() + SECONDS
        while int(program.ask("count")) <= most:
            assert time.monotonic() < end
    program.ask("rest")


def test_threads_that_allocate_are_held_between_two_calls(
    program: Program, library: Conversation
) -> None:
    program.tell("threads 4 60 2M")
    for _ in range(10):
        library.moved()
    assert program.answer() == "done"
    assert library.about().movable == 10 << 20


def test_a_gpu_that_does_not_come_to_rest(
    cuda: FakeCuda, program: Program, library: Conversation
) -> None:
    with cuda.held("cuCtxSynchronize"):
        for _ in range(2):
            answer = library.hold(200)
            assert (answer.status, answer.state) == (Status.BUSY, State.RUNNING)
            assert program.ask("fill 1 1") == "filled"
    assert library.hold().state is State.HELD
    assert not library.ask(Kind.OPEN).status


def busy(library: Conversation, program: Program, command: str) -> Answer:
    """Hold it until the command has got behind the gate before; the answer to that.

    Before, it may also be the library's thread that waits for the GPU which gets no processor.
    """
    program.tell(command)
    end = time.monotonic() + SECONDS
    while (answer := library.hold(50)).text != "calls are under way":
        assert answer.text in ("", "the GPU is at work")
        assert not library.ask(Kind.OPEN).status
        assert time.monotonic() < end
    return answer


@pytest.mark.parametrize(
    ("call", "command"),
    [("cuLaunchKernel", "launch 1 1"), ("cuMemCreate", "alloc 2M"), ("cuMemUnmap", "unmap 2")],
)
def test_a_call_that_does_not_end(
    cuda: FakeCuda, program: Program, library: Conversation, call: str, command: str
) -> None:
    with cuda.held(call):
        answer = busy(library, program, command)
        assert (answer.status, answer.state) == (Status.BUSY, State.RUNNING)
        assert answer.text == "calls are under way"
    program.answer()
    assert library.hold().state is State.HELD
    assert not library.ask(Kind.OPEN).status


def test_a_capture_is_waited_for(cuda: FakeCuda, program: Program, library: Conversation) -> None:
    """It is no moment to wait for the GPU, and the capture must be able to come to its end."""
    with cuda.held("cuStreamEndCapture"):
        answer = busy(library, program, "capture 1 4")
        assert (answer.status, answer.state) == (Status.BUSY, State.RUNNING)
    assert program.answer() == "captured"
    assert library.hold().state is State.HELD
    assert not library.ask(Kind.OPEN).status
    assert program.ask("replay") == "replayed"


CAPTURES = """
alloc(2 << 20)
for device in 0, 1:
    call("cuDevicePrimaryCtxRetain", byref(context), device)
call("cuDevicePrimaryCtxRetain", byref(context), on)
call("cuCtxSetCurrent", context)
stream, graph = c_void_p(), c_void_p()
call("cuStreamCreate", byref(stream), 1)
stop("ready")
call("cuStreamBeginCapture_v2", stream, 2)
stop("capturing")
call("cuStreamEndCapture", stream, byref(graph))
"""


def threads(program: Script) -> int:
    return len(os.listdir(f"/proc/{program.pid}/task"))


def refused(program: Script, milliseconds: int) -> None:
    """Hold it for too short a time; it begins to capture a stream then."""
    with Conversation(program.pid) as library:
        answer = library.hold(milliseconds)
        assert (answer.status, answer.state) == (Status.BUSY, State.RUNNING)
        program.go_on()
        program.reach("capturing")


@pytest.mark.parametrize("stage", ["cuCtxSynchronize", "cuThreadExchangeStreamCaptureMode"])
def test_nothing_is_waited_for_once_a_hold_was_refused(cuda: FakeCuda, stage: str) -> None:
    """A capture that the program has begun since would be spoilt.

    The library's thread is in the first of two contexts, or has not got that far.
    """
    with script(cuda, f"on = 1{CAPTURES}") as program:
        program.reach("ready")
        before = threads(program)
        with cuda.held(stage):
            refused(program, 300)
        eventually(lambda: threads(program) == before)
        program.go_on()
        program.end()


def test_a_refused_hold_leaves_nobody_about_to_wait(cuda: FakeCuda) -> None:
    """Who has been let go on to a context gets into the driver before the program goes on."""
    with script(cuda, f"on = 0{CAPTURES}") as program:
        program.reach("ready")
        before = threads(program)
        cuda.delay("cuCtxPushCurrent_v2", QUIET)
        refused(program, 10)
        eventually(lambda: threads(program) == before)
        program.go_on()
        program.end()
