"""An engine that is killed while it has the GPU memory of processes: the next one gives it back."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from resource import RLIMIT_NOFILE, prlimit

import pytest
from fakes.gpu_engine import UNTIL, Engine
from fakes.gpu_peer import CUDA, EMPTIED, RUNNING, Peer
from fakes.moving import movement

from shim.errors import GpuFailed, GpuLost
from shim.gpu.memory import keeper as keeping
from shim.gpu.memory.device import Memory
from shim.gpu.memory.keeper import Keeper, recover
from shim.gpu.memory.library import Library, Piece, close_all
from shim.gpu.memory.wire import Memory as Record

from .conftest import MIB, digests, states


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A container's, whose path is longer than a socket's may be."""
    made = tmp_path / ("c" * 120)
    made.mkdir()
    return made


@pytest.fixture
def pieces() -> Iterator[list[Piece]]:
    """More than fit into one message."""
    made = [Piece(Record(n, 2 * MIB, 0), os.memfd_create("kept")) for n in range(1, 151)]
    yield made
    close_all(made)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_ENDING", 0.1)


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def pids(peers: list[Peer]) -> list[int]:
    return [peer.pid for peer in peers]


def is_there(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


# -- while the engine lives ------------------------------------------------------------------------


def test_it_is_ended_when_all_is_done(folder: Path, pieces: list[Piece]) -> None:
    with Keeper(folder, [os.getpid()]) as keeper:
        assert os.getpgid(keeper.pid) == keeper.pid, "whoever ends our group does not mean it"
        keeper.keep({1: pieces[:100], 2: pieces[100:], 3: []})
        assert Path(f"/proc/{keeper.pid}/comm").read_text() == "thaw-gpu-keeper\n"
        links = [os.readlink(link) for link in Path(f"/proc/{keeper.pid}/fd").iterdir()]
        assert sum("kept" in link for link in links) == 150
        assert (folder / "keeper.sock").stat().st_mode & 0o777 == 0o600
        keeper.done()
        assert not is_there(keeper.pid)
        keeper.done()
    assert list(folder.iterdir()) == []


def test_so_it_is_with_the_block(folder: Path) -> None:
    with Keeper(folder, [os.getpid()]) as keeper:
        assert is_there(keeper.pid)
    assert not is_there(keeper.pid)
    assert list(folder.iterdir()) == []


def test_it_has_nothing_else_of_ours(folder: Path) -> None:
    """What other programs of ours get on purpose is the daemon's socket."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    with Keeper(folder, [os.getpid()]):
        os.close(write)
        assert select.select([read], [], [], 0)[0]
    os.close(read)


def test_what_one_before_has_left(folder: Path) -> None:
    (folder / "keeper.sock").touch()
    with Keeper(folder, [os.getpid()]):
        assert (folder / "keeper.sock").is_socket()


def test_it_cannot_be_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "KEEPER", "/nowhere/keeper")
    with pytest.raises(GpuFailed, match=r"cannot be started: .*/nowhere/keeper"):
        Keeper(folder, [os.getpid()]).__enter__()
    assert list(folder.iterdir()) == []


def test_nobody_to_keep_it_for(folder: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(GpuFailed, match=r"cannot be started: .*No such process"):
        Keeper(folder, [ended.pid]).__enter__()
    assert list(folder.iterdir()) == []


def test_it_cannot_take_it(folder: Path, pieces: list[Piece]) -> None:
    with Keeper(folder, [os.getpid()]) as keeper:
        keeper.keep({})  # it runs: what it may have is not what the loader needs
        prlimit(keeper.pid, RLIMIT_NOFILE, (8, 8))
        with pytest.raises(GpuFailed, match="process that keeps GPU memory"):
            keeper.keep({1: pieces})


def moved(memory: Memory, peers: list[Peer], keeper: Keeper) -> None:
    """Take everything, and give it back."""
    with movement(memory, peers, keeper=keeper) as under_way:
        assert states(peers) == [EMPTIED] * 2
        assert is_there(keeper.pid)
        under_way.give_back()
        assert not is_there(keeper.pid)


def test_with_a_movement(memory: Memory, peers: list[Peer], folder: Path) -> None:
    before = digests(peers)
    with Keeper(folder, [os.getpid()]) as keeper:
        moved(memory, peers, keeper)
    assert (states(peers), digests(peers)) == ([RUNNING] * 2, before)


def test_without_it_nobody_lets_go(memory: Memory, peers: list[Peer], folder: Path) -> None:
    before = digests(peers)
    with Keeper(folder, [os.getpid()]) as keeper:
        os.kill(keeper.pid, 9)
        with pytest.raises(GpuFailed, match="process that keeps GPU memory"):
            moved(memory, peers, keeper)
    assert (states(peers), digests(peers)) == ([RUNNING] * 2, before)
    assert not any("EMPTY" in peer.asked for peer in peers)


# -- after an engine that was killed ---------------------------------------------------------------


@pytest.mark.parametrize("until", UNTIL)
def test_it_was_killed(peers: list[Peer], folder: Path, until: str) -> None:
    before = digests(peers)
    with Engine(folder, pids(peers), until=until) as engine:
        assert (digests(peers) == before) == (until in ("kept", "given"))
        engine.kill()
        assert not engine.keeper_ended(0)
        recover(folder, pids(peers))
        assert engine.keeper_ended()
    assert (states(peers), digests(peers)) == ([RUNNING] * 2, before)
    assert list(folder.iterdir()) == []
    recover(folder, pids(peers))


def test_the_next_one_was_killed_too(peers: list[Peer], folder: Path) -> None:
    before = digests(peers)
    with Engine(folder, pids(peers)) as engine:
        engine.kill()
        kept = keeping._Kept(folder)
        with kept:
            assert {pid: len(of_one) for pid, of_one in kept.pieces.items()} == {
                peers[0].pid: 2,
                peers[1].pid: 1,
            }
        recover(folder, pids(peers))
        assert engine.keeper_ended()
    assert (states(peers), digests(peers)) == ([RUNNING] * 2, before)


def test_one_was_held_and_no_more(peers: list[Peer], folder: Path) -> None:
    library = Library.of(peers[0].pid)
    assert library is not None
    with library:
        library.hold(1.0)
    recover(folder, pids(peers))
    assert states(peers) == [RUNNING] * 2
    assert [peer.asked for peer in peers] == [["HOLD", "OPEN"], []]


def test_whoever_has_no_library_needs_nothing(folder: Path) -> None:
    recover(folder, [os.getpid()])


def test_the_keeper_was_killed_as_well(peers: list[Peer], folder: Path) -> None:
    with Engine(folder, pids(peers)) as engine:
        engine.kill()
        os.kill(engine.keeper, 9)
        assert engine.keeper_ended()
        with pytest.raises(GpuLost, match=f"process {peers[0].pid} has lost its GPU memory"):
            recover(folder, pids(peers))
    assert states(peers) == [EMPTIED] * 2
    assert list(folder.iterdir()) == []


def test_it_came_too_late(peers: list[Peer], folder: Path) -> None:
    with Engine(folder, pids(peers), seconds=0.01) as engine:
        assert not engine.keeper_ended(50), "there is an engine"
        engine.kill()
        assert engine.keeper_ended()
        with pytest.raises(GpuLost, match="has lost its GPU memory"):
            recover(folder, pids(peers))


def test_the_container_ends(peers: list[Peer], folder: Path) -> None:
    """The memory is free again for others."""
    with Engine(folder, pids(peers)) as engine:
        engine.kill()
        assert not engine.keeper_ended(0)
        peers[0].kill()
        assert engine.keeper_ended()


def test_one_ends_over_it(peers: list[Peer], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sockets are closed a while before it has ended."""
    monkeypatch.setattr(keeping, "_ENDING", 30.0)
    before = digests(peers)
    with Engine(folder, pids(peers)) as engine:
        engine.kill()
        peers[1].play(GIVE={"ends": True})
        recover(folder, pids(peers))
        assert engine.keeper_ended()
    assert (states(peers[:1]), digests(peers[:1])) == ([RUNNING], before[:1])


@pytest.mark.parametrize("call", ["GIVE", "OPEN"])
def test_one_cannot_have_it_back(peers: list[Peer], folder: Path, call: str) -> None:
    """The others do, and nobody keeps anything any longer."""
    with Engine(folder, pids(peers)) as engine:
        engine.kill()
        peers[1].play(**{call: {"status": CUDA, "value": 2}})
        with pytest.raises(GpuLost, match=f"cannot be given back: process {peers[1].pid}"):
            recover(folder, pids(peers))
        assert engine.keeper_ended()
    assert states(peers) == [RUNNING, EMPTIED]


def test_one_that_does_not_answer(peers: list[Peer], folder: Path) -> None:
    """It may do so later: what is its own is still kept."""
    before = digests(peers)
    with Engine(folder, pids(peers)) as engine:
        engine.kill()
        peers[1].play(HELLO={"raw": "00"})
        with pytest.raises(GpuFailed, match=f"process {peers[1].pid}.*an answer of 1 bytes"):
            recover(folder, pids(peers))
        assert states(peers) == [RUNNING, EMPTIED]
        peers[1].play()
        recover(folder, pids(peers))
        assert engine.keeper_ended()
    assert (states(peers), digests(peers)) == ([RUNNING] * 2, before)
