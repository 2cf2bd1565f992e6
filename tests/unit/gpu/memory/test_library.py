"""The conversation, with a process that plays the library: whatever it answers, it is refused in
words, within its time, and no descriptor is left."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from fakes.gpu_peer import BUSY, CUDA, WRONG, Peer

from shim.errors import GpuFailed
from shim.gpu.memory import marker, wire
from shim.gpu.memory.library import Library, Piece, close_all
from shim.gpu.memory.wire import RDMA, Memory, State

MIB = 1 << 20
UUID = bytes(range(16))
MOST = 1 << 40


@pytest.fixture
def peer() -> Iterator[Peer]:
    """It has three pieces, so that it exports in several messages."""
    with Peer([2 * MIB, 4 * MIB, 2 * MIB], [UUID]) as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = opened()
    yield
    gc.collect()
    assert opened() <= before


def opened() -> set[int]:
    """The memory that we have descriptors of, by inode; that of other tests' drivers, too."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            if os.readlink(f"/proc/self/fd/{fd}") == "/memfd:fake-gpu (deleted)":
                found.add(os.stat(f"/proc/self/fd/{fd}").st_ino)
    return found


@pytest.fixture
def library(peer: Peer) -> Iterator[Library]:
    found = Library.of(peer.pid, 30.0)
    assert found is not None
    with found:
        yield found


def test_the_marker(peer: Peer) -> None:
    found = marker.find(peer.pid)
    assert found is not None
    assert (found.pid, found.state) == (peer.pid, 0)
    assert marker.find(os.getpid()) is None
    assert Library.of(os.getpid()) is None
    peer.kill()
    assert marker.find(peer.pid) is None
    assert Library.of(peer.pid) is None


def test_a_marker_that_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our finding it and reading it; one that stays and cannot be read is not ours."""
    nowhere = 4096
    answers = iter([nowhere, None])
    monkeypatch.setattr(marker, "_address", lambda _: next(answers, None))
    assert marker.find(os.getpid()) is None
    monkeypatch.setattr(marker, "_address", lambda _: nowhere)
    with pytest.raises(GpuFailed, match="Input/output error"):
        marker.find(os.getpid())


def test_all_of_it(peer: Peer, library: Library) -> None:
    peer.write(1, 5, b"there")
    before = peer.digest
    about = library.hello()
    assert (about.movable, about.pieces, about.left) == (8 * MIB, 3, {})
    assert about.uuids == [UUID]
    library.hold(1.0)
    pieces = library.export(MOST, 1)
    try:
        sizes = [2 * MIB, 4 * MIB, 2 * MIB]
        assert [piece.memory for piece in pieces] == [
            Memory(id, size, 0, RDMA if id == 10 else 0)
            for id, size in zip((10, 20, 30), sizes, strict=True)
        ]
        assert os.pread(pieces[1].fd, 5, 5) == b"there"
        library.empty()
        assert state_of(library) is State.EMPTIED
        assert peer.digest == [""] * 3
        library.give(pieces[::-1])
        library.open()
    finally:
        close_all(pieces)
    assert state_of(library) is State.RUNNING
    assert peer.digest == before
    assert peer.asked == ["HOLD", "EXPORT", "EXPORT", "EXPORT", "EMPTY", "GIVE", "OPEN"]


def state_of(library: Library) -> State:
    return library.state


def test_many_pieces() -> None:
    """More than a message has room for."""
    with Peer([2 * MIB] * 150, [UUID]) as many:
        found = Library.of(many.pid)
        assert found is not None
        with found:
            found.hold(1.0)
            pieces = found.export(MOST, 1)
            found.empty()
            found.give(pieces)
            close_all(pieces)
            found.open()
        assert many.asked.count("GIVE") == 3
        assert "" not in many.digest


ASKED: dict[str, Callable[[Library], Any]] = {
    "HELLO": Library.hello,
    "HOLD": lambda library: library.hold(1.0),
    "EXPORT": lambda library: library.export(MOST, 1),
    "EMPTY": Library.empty,
    "GIVE": lambda library: library.give([Piece(Memory(10, 2 * MIB, 0), 0)]),
    "OPEN": Library.open,
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(
    ("play", "words"),
    [
        ({"status": CUDA, "value": 2, "text": "cuMemMap"}, "OUT_OF_MEMORY"),
        ({"status": WRONG, "text": "not now"}, "not now"),
        ({"raw": "00"}, "an answer of 1 bytes"),
        ({"ends": True}, "it has ended|Connection reset|Broken pipe"),
    ],
)
def test_what_is_no_good_answer(
    peer: Peer, library: Library, asked: str, play: dict[str, Any], words: str
) -> None:
    peer.play(**{asked: play})
    with pytest.raises(GpuFailed, match=f"process {peer.pid}: .*({words})"):
        ASKED[asked](library)


def test_it_does_not_come_to_rest(peer: Peer, library: Library) -> None:
    peer.play(HOLD={"status": BUSY})
    with pytest.raises(GpuFailed, match="not come to rest"):
        library.hold(0.1)
    assert library.state is State.RUNNING


@pytest.mark.parametrize("asked", ["HELLO", "EMPTY"])
def test_it_does_not_answer(peer: Peer, asked: str) -> None:
    peer.play(**{asked: {"silent": True}})
    found = Library.of(peer.pid, 0.2)
    assert found is not None
    with found, pytest.raises(GpuFailed, match=f"does not answer \\({asked}\\)"):
        ASKED[asked](found)


def records(*pieces: tuple[int, int, int], many: int | None = None) -> dict[str, str]:
    body = b"".join(wire.MEMORY.pack(*piece, 0) for piece in pieces)
    count = len(pieces) if many is None else many
    return {"raw": (wire.HEADER.pack(3, 0, 1, count, 0, b"") + body).hex()}


@pytest.mark.parametrize(
    ("play", "words"),
    [
        (records((10, 2 * MIB, 0)), "0 descriptors of 1 pieces"),
        (records((10, 2 * MIB, 1)), "a GPU that it does not have"),
        (records((10, MIB, 0)), "piece 10"),
        (records((0, 2 * MIB, 0)), "piece 0"),
        (records((10, 2 * MIB, 0), (10, 2 * MIB, 0)), "out of order"),
        (records((10, 2 * MIB, 0), many=2), "24 bytes of 2 records"),
        ({"raw": (wire.HEADER.pack(3, 0, 1, 0, 0, b"") + bytes(5000)).hex()}, "too long"),
        ({"raw": wire.HEADER.pack(3, 7, 1, 0, 0, b"").hex()}, "7"),
    ],
)
def test_pieces_that_cannot_be(
    peer: Peer, library: Library, play: dict[str, Any], words: str
) -> None:
    peer.play(EXPORT=play)
    with pytest.raises(GpuFailed, match=words):
        library.export(MOST, 1)


def test_more_than_there_is(peer: Peer, library: Library) -> None:
    with pytest.raises(GpuFailed, match="2 pieces, 6291456 bytes: too much"):
        library.export(5 * MIB, 1)


def test_answers_that_nobody_waits_for(peer: Peer, library: Library) -> None:
    """Those of a conversation that broke off come first."""
    peer.play(HELLO={"first": [3, 4]}, HOLD={"first": [1]})
    assert library.hello().pieces == 3
    library.hold(1.0)
    peer.play(OPEN={"first": [2] * 5})
    library.open()
    assert library.state is State.RUNNING


def test_a_child_is_not_who_answers(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has got the page, whatever was done against that."""
    monkeypatch.setattr(marker, "_own_pid", lambda pid: pid + 1)
    assert marker.find(peer.pid) is None


def test_a_descriptor_that_is_something_else(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = marker.find(peer.pid)
    assert found is not None
    for number, words in ((0, "no socket"), (999, "Bad file descriptor")):
        monkeypatch.setattr(marker, "find", lambda _, n=number: found._replace(engine=n))
        with pytest.raises(GpuFailed, match=words):
            Library.of(peer.pid)


def test_it_ends_over_it(peer: Peer, library: Library) -> None:
    library.hello()
    peer.kill()
    with pytest.raises(GpuFailed, match=r"has ended|reset|pipe"):
        library.hello()
