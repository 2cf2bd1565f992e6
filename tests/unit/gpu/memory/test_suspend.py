"""Memory is taken out of processes, copied and given back; whatever goes wrong, they run on."""

from __future__ import annotations

import os
import signal
from array import array
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu_peer import BUSY, CUDA, EMPTIED, RUNNING, Peer
from fakes.moving import movement

from shim.errors import CheckpointFailed, GpuFailed, GpuLost, Unfit
from shim.gpu.memory import saving, suspend
from shim.gpu.memory.device import Memory, laid_out
from shim.gpu.memory.library import Library
from shim.gpu.memory.suspend import ask
from shim.gpu.memory.wire import GIVEN
from shim.gpu.processes import is_stopped
from shim.snapshot.cuda import GpuRegion
from shim.snapshot.extents import Columns, check_regions
from shim.snapshot.pieces import created
from shim.timeline import Timeline

from .conftest import GPU, MIB, digests, states


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "one", tmp_path / "two"]
    for folder in made:
        folder.mkdir()
    return made


def test_all_of_it(memory: Memory, peers: list[Peer], folders: list[Path]) -> None:
    timeline = Timeline()
    before = digests(peers)
    with movement(memory, peers, timeline) as moved:
        assert states(peers) == [EMPTIED] * 2
        assert digests(peers) == [["", ""], [""]]
        assert moved.regions(peers[0].pid) == [
            GpuRegion(10, 4 * MIB, 0, GPU.uuid, rdma=True),
            GpuRegion(20, 2 * MIB, 0, GPU.uuid),
        ]
        assert moved.regions(peers[1].pid) == [GpuRegion(10, 2 * MIB, 0, GPU.uuid, rdma=True)]
        moved.save(folders, [peers[1].pid, peers[0].pid])
        moved.give_back()
        assert states(peers) == [RUNNING] * 2
        assert digests(peers) == before
        saved = moved.finish()
    assert (saved.stored, saved.total) == (2 * (64 << 10), 8 * MIB)
    [piece] = list(folders[0].iterdir())
    assert (piece.name, piece.stat().st_size) == ("gpu-1.img.0000", saved.stored)
    columns = Columns.of(saved.extents)
    check_regions(columns, [saved.stored], [2 * MIB, 4 * MIB, 2 * MIB])
    assert sorted(array("I", saved.extents)[6::8]) == [1, 2], "regions, in the order asked for"
    assert b"first" in piece.read_bytes()
    spans = [span.name for span in timeline.spans]
    assert spans[:3] == ["hold", "export", "empty"]
    assert sorted(spans[3:]) == ["copy", "give", "scan"]


def test_over_several_folders(
    memory: Memory, peers: list[Peer], folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "laid_out", lambda scans: laid_out(scans, 64 << 10))
    with movement(memory, peers) as moved:
        moved.save(folders, [peer.pid for peer in peers])
        moved.give_back()
        moved.finish()
    names = [[path.name for path in folder.iterdir()] for folder in folders]
    assert names == [["gpu-1.img.0000"], ["gpu-1.img.0001"]]


def test_twice(memory: Memory, peers: list[Peer]) -> None:
    """What was given back is taken again."""
    before = digests(peers)
    for _ in range(2):
        with movement(memory, peers):
            assert states(peers) == [EMPTIED] * 2
        assert states(peers) == [RUNNING] * 2
        assert digests(peers) == before


def test_who_has_none() -> None:
    [found] = ask([os.getpid()], lambda pid: f"not {pid}").values()
    assert (found.library, found.left, found.reason) == (None, {}, f"not {os.getpid()}")


def test_what_stays_with_the_driver(peers: list[Peer]) -> None:
    peers[0].play(about={"small": 5, "pool": 7, "movable": 0})
    found = ask([peers[0].pid], lambda _: "none")[peers[0].pid]
    assert (found.left, found.reason) == ({"small": 5, "pool": 7}, "")
    assert found.about is not None
    assert found.about.movable == 0
    suspend.close([found])


def test_memory_of_others_is_refused(peers: list[Peer]) -> None:
    """Before anything is touched."""
    peers[1].play(about={"imported": 1})
    with pytest.raises(Unfit, match=f"process {peers[1].pid} has GPU memory of another"):
        ask([peer.pid for peer in peers], lambda _: "none")
    assert [peer.asked for peer in peers] == [[], []]


def test_what_was_given_back_is_not_the_drivers(peers: list[Peer]) -> None:
    """It could not restore that."""
    found = ask([peer.pid for peer in peers], lambda _: "none")
    suspend.refuse_given(found, "nobody has")
    suspend.close(found.values())
    peers[1].play(about={"flags": GIVEN})
    found = ask([peer.pid for peer in peers], lambda _: "none")
    with pytest.raises(Unfit, match=rf"process {peers[1].pid} has .* given back .*\(because\)"):
        suspend.refuse_given(found, "because")
    suspend.close(found.values())
    assert [peer.asked for peer in peers] == [[], []]


def test_one_that_is_stopped_is_not_waited_for(peers: list[Peer]) -> None:
    os.kill(peers[0].pid, signal.SIGSTOP)
    while not is_stopped(peers[0].pid):
        pass
    with pytest.raises(GpuFailed, match=f"process {peers[0].pid} is stopped"):
        ask([peers[0].pid], lambda _: "none")
    os.kill(peers[0].pid, signal.SIGCONT)


def test_one_that_an_engine_has_left_held_is_let_go(peers: list[Peer]) -> None:
    found = Library.of(peers[0].pid)
    assert found is not None
    with found:
        found.hold(1.0)
    suspend.close(ask([peers[0].pid], lambda _: "none").values())
    assert peers[0].asked == ["HOLD", "OPEN"]


@pytest.mark.parametrize(
    ("play", "words"),
    [
        ({"HOLD": {"status": BUSY}}, "not come to rest"),
        ({"EXPORT": {"status": CUDA, "value": 801}}, "NOT_SUPPORTED"),
        ({"EXPORT": {"raw": "00"}}, "an answer of 1 bytes"),
        ({"EMPTY": {"status": CUDA, "value": 1}}, "INVALID_VALUE"),
        ({"EMPTY": {"status": CUDA, "value": 1, "done": True}}, "INVALID_VALUE"),
        ({"EMPTY": {"status": CUDA, "value": 1, "keeps": 1}}, "INVALID_VALUE"),
    ],
)
def test_a_failure(memory: Memory, peers: list[Peer], play: dict[str, Any], words: str) -> None:
    """Of one: all get back what they had, and go on."""
    before = digests(peers)
    peers[1].play(**play)
    with (
        pytest.raises(GpuFailed, match=f"process {peers[1].pid}.*{words}"),
        movement(memory, peers),
    ):
        pytest.fail("it did not fail")
    assert states(peers) == [RUNNING] * 2
    assert digests(peers) == before


def test_a_driver_that_refuses(memory: Memory, peers: list[Peer], cuda: FakeCuda) -> None:
    cuda.answer("cuMemImportFromShareableHandle", 999)
    with pytest.raises(GpuFailed, match="cuMemImportFromShareableHandle"), movement(memory, peers):
        pytest.fail("it did not fail")
    assert states(peers) == [RUNNING] * 2


def test_more_than_the_gpus_have(memory: Memory, peers: list[Peer]) -> None:
    with pytest.raises(GpuFailed, match="too much"), movement(memory, peers, most=3 * MIB):
        pytest.fail("it did not fail")
    assert states(peers) == [RUNNING] * 2


def test_one_that_has_freed_all_meanwhile(memory: Memory, peers: list[Peer]) -> None:
    """Dumped as one that is emptied it would wait for ever, after a restore, to be opened."""
    with Peer([], [GPU.uuid_bytes]) as third:
        everybody = [*peers, third]
        with (
            pytest.raises(GpuFailed, match=f"process {third.pid} has just freed"),
            movement(memory, everybody),
        ):
            pytest.fail("it did not fail")
        assert states(everybody) == [RUNNING] * 3


def test_one_that_has_mapped_memory_of_another_meanwhile(memory: Memory, peers: list[Peer]) -> None:
    found = ask([peers[0].pid], lambda _: "none")[peers[0].pid]
    assert found.library is not None
    assert found.about is not None
    having = {peers[0].pid: (found.library, found.about)}
    peers[0].play(about={"imported": 1})
    with (
        pytest.raises(GpuFailed, match="has mapped GPU memory of another"),
        suspend.Movement(memory, having, Timeline(), 1.0, 1 << 30),
    ):
        pytest.fail("it did not fail")
    suspend.close([found])
    assert states(peers) == [RUNNING] * 2


def test_memory_on_a_gpu_that_is_not_the_container_s(memory: Memory, peers: list[Peer]) -> None:
    with movement(memory, peers, gpus=[GPU.uuid]):
        assert states(peers) == [EMPTIED] * 2
    with (
        pytest.raises(GpuFailed, match=f"has memory on {GPU.uuid}, which is not its container's"),
        movement(memory, peers, gpus=["GPU-of-another"]),
    ):
        pytest.fail("it did not fail")
    assert states(peers) == [RUNNING] * 2


def test_what_is_raised_within(memory: Memory, peers: list[Peer], folders: list[Path]) -> None:
    before = digests(peers)
    with pytest.raises(CheckpointFailed, match="on purpose"):
        fail(memory, peers, folders)
    assert (states(peers), digests(peers)) == ([RUNNING] * 2, before)
    assert [*folders[0].iterdir(), *folders[1].iterdir()] == []


def fail(memory: Memory, peers: list[Peer], folders: list[Path]) -> None:
    with movement(memory, peers) as moved:
        moved.save(folders, [peer.pid for peer in peers])
        raise CheckpointFailed("on purpose")


FULL = OSError(28, "No space left on device")


def full(*_: object, **__: object) -> Any:
    raise FULL


@pytest.mark.parametrize("what", ["created", "CopyOut"])
def test_what_cannot_be_saved(
    memory: Memory,
    peers: list[Peer],
    folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """It is known once it is given back."""
    monkeypatch.setattr(saving, what, full)
    with movement(memory, peers) as moved:
        moved.save(folders, [peer.pid for peer in peers])
        with pytest.raises(CheckpointFailed, match=r"cannot save GPU memory: .*No space") as failed:
            moved.give_back()
        assert failed.value.__cause__ is FULL
        assert states(peers) == [RUNNING] * 2
    assert not list(folders[0].iterdir())


def test_all_zeros_are_nothing(memory: Memory, peers: list[Peer], folders: list[Path]) -> None:
    with movement(memory, peers[1:]) as moved:
        moved.save(folders, [peers[1].pid])
        moved.give_back()
        saved = moved.finish()
    assert (saved.extents, saved.stored, saved.total) == (b"", 0, 2 * MIB)
    assert not list(folders[0].iterdir())


def test_what_an_earlier_one_has_left_is_replaced(
    memory: Memory, peers: list[Peer], folders: list[Path]
) -> None:
    with created(folders[0] / "gpu-1.img.0000", 4096):
        pass
    with movement(memory, peers) as moved:
        moved.save(folders, [peer.pid for peer in peers])
        moved.give_back()
        assert moved.finish().stored == (folders[0] / "gpu-1.img.0000").stat().st_size


# -- one that cannot have it back, or is no more ---------------------------------------------------


@pytest.mark.parametrize("call", ["GIVE", "OPEN"])
def test_lost(memory: Memory, peers: list[Peer], call: str) -> None:
    """The others go on all the same."""
    with pytest.raises(GpuLost, match=f"cannot be given back: process {peers[1].pid}"):
        lose(memory, peers, call)
    assert states(peers)[0] == RUNNING


def lose(memory: Memory, peers: list[Peer], call: str) -> None:
    with movement(memory, peers) as moved:
        peers[1].play(**{call: {"status": CUDA, "value": 2}})
        moved.give_back()


def test_lost_after_a_failure(memory: Memory, peers: list[Peer]) -> None:
    """Both are told."""
    with pytest.raises(GpuLost, match=r"(?s)on purpose.*cannot be given back"):
        spoil(memory, peers)


def spoil(memory: Memory, peers: list[Peer]) -> None:
    with movement(memory, peers):
        peers[1].play(GIVE={"status": CUDA, "value": 2})
        raise CheckpointFailed("on purpose")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspend, "_ENDING", 0.1)


def test_killed_meanwhile(memory: Memory, peers: list[Peer], folders: list[Path]) -> None:
    """Its memory is whole: it was taken before. That it ended is for others to notice."""
    with movement(memory, peers) as moved:
        moved.save(folders, [peer.pid for peer in peers])
        peers[1].kill()
        moved.give_back()
        assert moved.finish().total == 8 * MIB
    assert states(peers[:1]) == [RUNNING]


@pytest.mark.parametrize("call", ["HOLD", "EXPORT", "EMPTY"])
def test_killed_over_a_call(memory: Memory, peers: list[Peer], call: str) -> None:
    peers[1].play(**{call: {"ends": True}})
    said = f"process {peers[1].pid}.*ended"
    with pytest.raises(GpuFailed, match=said), movement(memory, peers):
        pytest.fail("it did not fail")
    assert states(peers[:1]) == [RUNNING]


def test_one_that_is_lost_is_given_nothing(memory: Memory, peers: list[Peer]) -> None:
    """Its container is ended: nobody waits for calls that the driver holds."""
    with pytest.raises(GpuLost, match=r"^on purpose$"):
        lose_all(memory, peers)
    assert states(peers) == [EMPTIED] * 2


def lose_all(memory: Memory, peers: list[Peer]) -> None:
    with movement(memory, peers):
        raise GpuLost("on purpose")
