"""What the engine asks of the GPU memory library, and what becomes of it when something fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.cuda import PASS, FakeCuda
from fakes.gpu import Program, sums
from fakes.gpu_conversation import LIBRARY, Conversation
from fakes.settled import eventually

from shim.gpu.memory import marker
from shim.gpu.memory.wire import HEADER, RECORDS, Kind, Memory, State, Status, request

from .conftest import open_descriptors

MIB = 1 << 20
FAILURE = 999


@pytest.fixture
def program(cuda: FakeCuda) -> Iterator[Program]:
    """With memory of both kinds, filled."""
    with Program(cuda, preload=LIBRARY) as started:
        started.filled("alloc 4M", "plain 2M", "alloc 6M")
        yield started


def state_of(program: Program) -> int:
    found = marker.find(program.pid)
    assert found is not None
    return found.state


def test_what_it_knows(program: Program, library: Conversation) -> None:
    about = library.about()
    assert (about.movable, about.pieces, about.left) == (12 * MIB, 3, {})
    assert not about.given
    assert len(about.uuids) == 1
    assert any(about.uuids[0])


def test_memory_leaves_and_comes_back(program: Program, library: Conversation) -> None:
    """Again and again: what was given back can be taken once more."""
    before, fds_before = sums(program), open_descriptors(program)
    ids = None
    for _ in range(3):
        memory, fds = library.emptied()
        assert [piece.size for piece in memory] == [4 * MIB, 2 * MIB, 6 * MIB]
        assert {piece.device for piece in memory} == {0}
        assert ids in (None, [piece.id for piece in memory])
        ids = [piece.id for piece in memory]
        assert library.about().movable == 12 * MIB
        assert not library.give(memory[::-1], fds[::-1]).status
        assert library.ask(Kind.OPEN).state is State.RUNNING
        assert library.about().given
        assert sums(program) == before
    assert open_descriptors(program) == fds_before


def test_what_was_given_back_and_then_handed_on(program: Program, library: Conversation) -> None:
    """It cannot be moved any more, and the driver would take it for another process's."""
    number = program.number("create 8M")
    library.moved()
    assert library.about().left == {}
    program.ask(f"export {number}")
    about = library.about()
    assert (about.movable, about.left) == (12 * MIB, {"imported": 8 * MIB})
    assert about.given
    for one in range(1, number + 1):
        program.ask(f"free {one}")
    assert not library.about().given


def test_the_process_keeps_nothing_of_it(program: Program, library: Conversation) -> None:
    before, _ = map(int, program.ask("info").split())
    memory, fds = library.emptied()
    left, _ = map(int, program.ask("info").split())
    assert left == before + 12 * MIB
    library.give(memory, fds)
    library.ask(Kind.OPEN)


def test_many_pieces_take_many_messages(program: Program, library: Conversation) -> None:
    numbers = [program.number("alloc 2M") for _ in range(RECORDS + 10)]
    for number in numbers:
        program.ask(f"set {number} {number % 251}")
    before = [program.ask(f"sum {number}") for number in numbers]
    for number in numbers[::3]:
        program.ask(f"free {number}")
    memory = library.moved()
    kept = len(numbers) - len(numbers[::3])
    assert len(memory) == len({piece.id for piece in memory}) == kept + 3
    after = [program.ask(f"sum {n}") for i, n in enumerate(numbers) if i % 3]
    assert after == [found for i, found in enumerate(before) if i % 3]


def test_other_memory_may_be_given(program: Program, library: Conversation) -> None:
    """As at a restore: what the engine has filled stands for what it had taken."""
    memory, fds = library.emptied()
    before = os.pread(fds[0], 4096, 0)
    os.pwrite(fds[0], bytes(4096), 0)
    assert any(before)
    assert not library.give(memory, fds).status
    assert not library.ask(Kind.OPEN).status
    other = sums(program)
    program.ask("fill 1 1")
    assert sums(program)[0] != other[0]


@pytest.mark.parametrize("at", range(3))
def test_an_export_that_fails_is_told(
    cuda: FakeCuda, program: Program, library: Conversation, at: int
) -> None:
    before, fds_before = sums(program), open_descriptors(program)
    cuda.answer("cuMemExportToShareableHandle", *[PASS] * at, FAILURE, FAILURE)
    assert not library.hold().status
    answer = library.ask(Kind.EXPORT)
    assert (answer.status, answer.value) == (Status.CUDA, FAILURE)
    assert answer.text == "cuMemExportToShareableHandle"
    assert (answer.state, answer.many, answer.records) == (State.HELD, 0, b"")
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before
    assert open_descriptors(program) == fds_before


def test_what_no_descriptor_was_sent_of_stays(
    cuda: FakeCuda, program: Program, library: Conversation
) -> None:
    """Nobody else has it: to let go of it would be its end."""
    before = sums(program)
    cuda.answer("cuMemExportToShareableHandle", PASS, FAILURE, FAILURE)
    assert not library.hold().status
    assert library.ask(Kind.EXPORT).status is Status.CUDA
    assert not library.ask(Kind.EMPTY).status
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before


def test_what_could_not_be_sent_stays(program: Program, library: Conversation) -> None:
    """There is no room for its answers, as nobody has read those before."""
    before, fds_before = sums(program), open_descriptors(program)
    assert not library.hold().status
    for kind in (*[Kind.HELLO] * 2000, Kind.EXPORT, Kind.EMPTY, Kind.OPEN):
        library.send(request(kind))
    eventually(lambda: state_of(program) == State.RUNNING)
    assert sums(program) == before
    assert open_descriptors(program) == fds_before


@pytest.mark.parametrize("at", range(3))
def test_an_unmap_that_fails_leaves_all_as_it_was(
    cuda: FakeCuda, program: Program, library: Conversation, at: int
) -> None:
    before = sums(program)
    assert not library.hold().status
    library.export()
    cuda.answer("cuMemUnmap", *[PASS] * at, FAILURE)
    answer = library.ask(Kind.EMPTY)
    assert (answer.status, answer.value, answer.text) == (Status.CUDA, FAILURE, "cuMemUnmap")
    assert answer.state is State.HELD
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before


@pytest.mark.parametrize("at", range(3))
def test_a_release_that_fails_is_undone_by_giving_all_back(
    cuda: FakeCuda, program: Program, library: Conversation, at: int
) -> None:
    before = sums(program)
    assert not library.hold().status
    memory, fds = library.export()
    cuda.answer("cuMemRelease", *[PASS] * at, FAILURE)
    answer = library.ask(Kind.EMPTY)
    assert (answer.status, answer.state) == (Status.CUDA, State.EMPTIED)
    if at:  # what was not released is not missed
        assert library.ask(Kind.OPEN).status is Status.MISSING
        assert not library.give(memory[:at], fds[:at]).status
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before


@pytest.mark.parametrize("call", ["cuMemImportFromShareableHandle", "cuMemMap", "cuMemSetAccess"])
@pytest.mark.parametrize("at", range(3))
def test_what_could_not_be_given_can_be_given_again(
    cuda: FakeCuda, program: Program, library: Conversation, call: str, at: int
) -> None:
    before, fds_before = sums(program), open_descriptors(program)
    memory, fds = library.emptied()
    cuda.answer(call, *[PASS] * at, FAILURE)
    answer = library.give(memory, fds)
    assert (answer.status, answer.value, answer.text) == (Status.CUDA, FAILURE, call)
    assert answer.state is State.EMPTIED
    assert library.ask(Kind.OPEN).status is Status.MISSING
    assert not library.give(memory[at:], fds[at:]).status
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before
    assert open_descriptors(program) == fds_before


def test_a_sync_that_fails_opens_the_gate(
    cuda: FakeCuda, program: Program, library: Conversation
) -> None:
    cuda.answer("cuCtxSynchronize", 700)
    answer = library.hold()
    assert (answer.status, answer.value, answer.text) == (Status.CUDA, 700, "cuCtxSynchronize")
    assert answer.state is State.RUNNING
    assert program.ask("fill 1 1") == "filled"


@pytest.mark.parametrize("kind", [Kind.EXPORT, Kind.EMPTY, Kind.GIVE])
def test_nothing_goes_before_its_time(program: Program, library: Conversation, kind: Kind) -> None:
    before = sums(program)
    answer = library.ask(kind)
    assert (answer.status, answer.state) == (Status.WRONG, State.RUNNING)
    assert not library.hold().status
    assert library.hold().status is Status.WRONG
    if kind is Kind.GIVE:
        assert library.ask(kind).status is Status.WRONG
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before


def test_what_was_not_exported_stays(program: Program, library: Conversation) -> None:
    """Emptying takes only what somebody else keeps alive."""
    before = sums(program)
    assert not library.hold().status
    answer = library.ask(Kind.EMPTY)
    assert (answer.status, answer.state) == (Status.OK, State.EMPTIED)
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before


def test_only_what_is_missing_is_taken_back(program: Program, library: Conversation) -> None:
    before = sums(program)
    memory, fds = library.emptied()
    first = memory[0]
    wrong = {
        "no such memory": first._replace(id=first.id + 1000),
        "another size": first._replace(size=first.size + 2 * MIB),
        "another device": first._replace(device=1),
    }
    for text, piece in wrong.items():
        answer = library.give([piece], fds[:1])
        assert (answer.status, answer.text) == (Status.WRONG, text)
    assert not library.give(memory[:1], fds[:1]).status
    answer = library.give(memory[:1], fds[:1])
    assert (answer.status, answer.text) == (Status.WRONG, "given already")
    assert not library.give(memory[1:], fds[1:]).status
    assert library.ask(Kind.OPEN).state is State.RUNNING
    assert sums(program) == before


def garbage() -> dict[str, bytes]:
    """Messages that nobody should send."""
    piece = Memory(1, 2 * MIB, 0)
    give = request(Kind.GIVE, 0, [piece])
    return {
        "empty": b"",
        "short": b"\1\0\0\0",
        "unknown kind": HEADER.pack(77, 0, 0, 0, 0, b""),
        "kind of all ones": HEADER.pack(0xFFFFFFFF, 1, 2, 0, 3, b"x" * 64),
        "count without records": HEADER.pack(Kind.GIVE, 0, 0, 2, 0, b"") + give[HEADER.size :],
        "largest count": HEADER.pack(Kind.GIVE, 0, 0, 0xFFFFFFFF, 0, b""),
        "records of HELLO": HEADER.pack(Kind.HELLO, 0, 0, 1, 0, b"") + give[HEADER.size :],
        "cut off": give[:-1],
        "too long": request(Kind.GIVE, 0, [piece] * RECORDS) + bytes(4096),
        "random": bytes(range(256)) * 4,
    }


@pytest.mark.parametrize("what", garbage())
def test_garbage_is_answered_and_changes_nothing(
    program: Program, library: Conversation, what: str
) -> None:
    before, fds_before = sums(program), open_descriptors(program)
    with open("/dev/null", "rb") as file:
        for fds in ([], [file.fileno()] * 3):
            library.send(garbage()[what], fds)
            answer = library.receive().answer
            assert (answer.status, answer.state) == (Status.WRONG, State.RUNNING)
            assert answer.text
    assert library.about().movable == 12 * MIB
    assert sums(program) == before
    assert open_descriptors(program) == fds_before


def test_descriptors_where_none_are_wanted_are_closed(
    program: Program, library: Conversation
) -> None:
    before = open_descriptors(program)
    with open("/dev/null", "rb") as file:
        for kind in (Kind.HELLO, Kind.HOLD, Kind.EXPORT, Kind.EMPTY, Kind.OPEN):
            answer = library.ask(kind, 1000, fds=[file.fileno()] * 3)
            assert (answer.status, answer.state) == (Status.WRONG, State.RUNNING)
        memory, fds = library.emptied()
        answer = library.ask(Kind.GIVE, 0, memory, [*fds, file.fileno()])
        assert (answer.status, answer.text) == (Status.WRONG, "one descriptor for each record")
        answer = library.ask(Kind.GIVE, 0, memory[:1], [file.fileno()])
        assert (answer.status, answer.text) == (Status.CUDA, "cuMemImportFromShareableHandle")
    assert not library.give(memory, fds).status
    assert not library.ask(Kind.OPEN).status
    assert open_descriptors(program) == before


def test_requests_are_answered_in_turn(program: Program, library: Conversation) -> None:
    """Whoever comes after a conversation that broke off passes over what it has not read."""
    asked = [Kind.HOLD, Kind.EXPORT, Kind.OPEN, Kind.HELLO]
    for kind in asked:
        library.send(request(kind, 30_000 if kind is Kind.HOLD else 0))
    with Conversation(program.pid) as next_one:
        answers = [next_one.receive() for _ in asked]
    assert [said.answer.kind for said in answers] == asked
    assert [len(said.fds) for said in answers] == [0, 3, 0, 0]
    assert answers[-1].answer.state is State.RUNNING


def marker_state(program: Program) -> int:
    found = marker.find(program.pid)
    assert found is not None
    return found.state


def test_the_marker_tells_the_state(program: Program, library: Conversation) -> None:
    found = marker.find(program.pid)
    assert found is not None
    assert (found.pid, found.state) == (program.pid, State.RUNNING)
    memory, fds = library.emptied()
    assert marker_state(program) == State.EMPTIED
    library.give(memory, fds)
    library.ask(Kind.OPEN)
    assert marker_state(program) == State.RUNNING


def test_the_thread_gets_no_signals(program: Program) -> None:
    """But for those that it causes itself, and the C library's own: the first that is not is 34."""
    masks = set()
    for task in os.listdir(f"/proc/{program.pid}/task"):
        status = Path(f"/proc/{program.pid}/task/{task}/status").read_text()
        masks.add(int(status.split("SigBlk:")[1].split()[0], 16))
    let = sum(1 << (n - 1) for n in (4, 5, 6, 7, 8, 11, 31, 32, 33))
    # The kernel never blocks SIGKILL and SIGSTOP.
    assert 0xFFFF_FFFF_FFFF_FFFF & ~let & ~(1 << 8) & ~(1 << 18) in masks


def test_the_descriptors_are_closed_in_what_is_executed(program: Program) -> None:
    found = marker.find(program.pid)
    assert found is not None
    info = Path(f"/proc/{program.pid}/fdinfo/{found.engine}").read_text()
    flags = int(info.split("flags:")[1].split()[0], 8)
    assert flags & os.O_CLOEXEC
