"""GPU memory that the library makes itself where it was, as its process can be given none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu import Program, sums
from fakes.gpu_conversation import LIBRARY, Conversation

from shim.gpu.memory.wire import Kind, Memory, State, Status

from .conftest import open_descriptors

MIB = 1 << 20
FAILURE = 999


@pytest.fixture
def program(cuda: FakeCuda) -> Iterator[Program]:
    with Program(cuda, preload=LIBRARY) as started:
        started.filled("alloc 4M", "plain 2M", "create 6M")
        yield started


def make(library: Conversation, memory: Memory, content: int) -> None:
    """And fill it with what another has; a descriptor of the fake driver's is a file."""
    said = library.exchange(Kind.MAKE, 0, [memory])
    assert not said.answer.status, said.answer
    assert said.answer.state is State.EMPTIED
    (made,) = said.fds
    assert os.fstat(made).st_ino != os.fstat(content).st_ino
    os.pwrite(made, os.pread(content, memory.size, 0), 0)
    os.close(made)


def test_all_of_it(program: Program, library: Conversation) -> None:
    before = sums(program)
    memory, fds = library.emptied()
    for piece, fd in zip(memory, fds, strict=True):
        make(library, piece, fd)
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before
    about = library.about()
    assert not about.given
    assert about.left == {"other": 12 * MIB}
    for number in (1, 2, 3):
        program.ask(f"fill {number} 9")
        program.ask(f"free {number}")
    assert library.about().left == {}


def test_nothing_is_taken_out_any_more(program: Program, library: Conversation) -> None:
    """It could not come back."""
    memory, fds = library.emptied()
    for piece, fd in zip(memory, fds, strict=True):
        make(library, piece, fd)
    assert library.ask(Kind.OPEN).state is State.RUNNING
    program.ask("alloc 8M")
    about = library.about()
    assert (about.movable, about.pieces) == (0, 0)
    assert about.left == {"other": 20 * MIB}
    assert library.emptied() == ([], [])
    assert library.ask(Kind.OPEN).state is State.RUNNING


def test_some_given_and_some_made(program: Program, library: Conversation) -> None:
    before = sums(program)
    memory, fds = library.emptied()
    assert not library.give(memory[:1], fds[:1]).status
    assert library.ask(Kind.MAKE, 0, memory[:1]).text == "given already"
    assert library.ask(Kind.OPEN).status is Status.MISSING
    for piece, fd in zip(memory[1:], fds[1:], strict=True):
        make(library, piece, fd)
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before
    assert library.about().given, "of that, the driver could restore none"


@pytest.mark.parametrize(
    "call", ["cuMemCreate", "cuMemExportToShareableHandle", "cuMemMap", "cuMemSetAccess"]
)
def test_what_fails_leaves_it_away(
    cuda: FakeCuda, program: Program, library: Conversation, call: str
) -> None:
    had = sums(program)
    memory, fds = library.emptied()
    descriptors = open_descriptors(program)
    cuda.answer(call, FAILURE)
    answer = library.ask(Kind.MAKE, 0, memory[:1])
    assert (answer.status, answer.value, answer.text) == (Status.CUDA, FAILURE, call)
    assert answer.state is State.EMPTIED
    assert open_descriptors(program) == descriptors
    assert library.ask(Kind.OPEN).status is Status.MISSING
    assert not library.give(memory, fds).status
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == had
    assert library.about().movable == 12 * MIB, "it takes memory of others: it can be moved"


def test_requests_that_are_none(library: Conversation) -> None:
    memory, fds = library.emptied()
    wrong = [
        ([], []),
        (memory[:2], []),
        (memory[:1], fds[:1]),
        ([Memory(99, 4 * MIB, 0)], []),
        ([memory[0]._replace(size=2 * MIB)], []),
        ([memory[0]._replace(device=1)], []),
    ]
    for records, descriptors in wrong:
        assert library.ask(Kind.MAKE, 0, records, descriptors).status is Status.WRONG
    assert not library.give(memory, fds).status
    assert library.ask(Kind.MAKE, 0, memory[:1]).status is Status.WRONG
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert library.ask(Kind.MAKE, 0, memory[:1]).text == "only while emptied"
