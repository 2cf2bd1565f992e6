"""Memory is made and filled anew for processes that lost theirs; all get it, or none goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu_conversation import Conversation
from fakes.gpu_peer import CUDA, EMPTIED, RUNNING, Peer
from fakes.moving import movement
from fakes.nvml import H100, numbered
from fakes.regions import used
from fakes.settled import eventually
from fakes.snapshots import CONFIG, write

from shim.errors import Damaged, GpuFailed, RestoreFailed
from shim.gpu.memory import index, resume
from shim.gpu.memory.device import Memory, Region
from shim.gpu.memory.resume import Refill
from shim.snapshot.cuda import CudaProcess, CudaState
from shim.snapshot.snapshot import Snapshot

from .conftest import GPU, MIB, digests, states

HERE = {GPU.uuid: GPU.uuid}
OUT_OF_MEMORY = 2


@dataclass
class Restored:
    """Two processes whose memory is in a snapshot, and nowhere else."""

    peers: list[Peer]
    snapshot: Snapshot
    digests: list[list[str]]
    cuda: FakeCuda

    def refill(self) -> Refill:
        stored = index.stored(self.snapshot)
        assert stored is not None
        return Refill(lambda: Memory.open(self.cuda.library), stored, self.snapshot.config.gpu)

    @property
    def pids(self) -> dict[int, int]:
        return {number + 1: peer.pid for number, peer in enumerate(self.peers)}

    @property
    def states(self) -> list[int]:
        return states(self.peers)

    @property
    def now(self) -> list[list[str]]:
        return digests(self.peers)


@pytest.fixture
def restored(cuda: FakeCuda, memory: Memory, peers: list[Peer], tmp_path: Path) -> Restored:
    before = digests(peers)
    folder = tmp_path / "one"
    pages = folder / "pages"
    pages.mkdir(parents=True)
    with movement(memory, peers) as moved:
        moved.save([pages], [peer.pid for peer in peers])
        processes = [CudaProcess(n + 1, [], moved.regions(p.pid)) for n, p in enumerate(peers)]
        moved.give_back()
        saved = moved.finish()
    data = {path.name: path.read_bytes() for path in pages.iterdir()}
    config = replace(
        CONFIG,
        gpu=CudaState(processes, [GPU.uuid]),
        pages={**CONFIG.pages, **{name: len(content) for name, content in data.items()}},
    )
    for path in pages.iterdir():
        path.unlink()
    pages.rmdir()
    folder.rmdir()
    write(folder, config)
    for name, content in data.items():
        (pages / name).write_bytes(content)
    index.write(folder / "index", saved.extents)
    for peer in peers:
        lose(peer)
    return Restored(peers, Snapshot(folder), before, cuda)


def lose(peer: Peer) -> None:
    """As a process is that was dumped: without its memory, waiting for it."""
    with Conversation(peer.pid) as library:
        library.emptied()


@pytest.fixture
def refill(restored: Restored) -> Iterator[Refill]:
    made = restored.refill()
    yield made
    made.close()


def test_all_of_it(restored: Restored, refill: Refill) -> None:
    assert restored.states == [EMPTIED] * 2
    refill.prefetch()
    refill.begin(HERE)
    refill.made()
    refill.give(restored.pids)
    assert restored.states == [RUNNING] * 2
    assert restored.now == restored.digests
    assert [peer.rdma for peer in restored.peers] == [[True, False], [True]]
    figures = refill.figures()
    assert (figures.stored, figures.total) == (2 * (64 << 10), 8 * MIB)
    names = {span.name for span in refill.timeline.spans}
    assert names == {"context", "make", "fill", "filled", "give"}
    refill.close()
    assert restored.now == restored.digests, "what they have got is theirs"


def test_it_is_filled_while_the_rest_is_made(
    restored: Restored, refill: Refill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First what has data, in its order; all is made only once the last piece is."""
    made: list[int] = []
    create = Memory.create

    def slow(self: Memory, uuid: bytes, size: int, *, rdma: bool = False) -> Region:
        made.append(size)
        if len(made) == 3:
            copy = refill._copy
            assert copy is not None
            eventually(lambda: copy.progress().done == 2 * (64 << 10))
            assert not refill._made.is_set()
        return create(self, uuid, size, rdma=rdma)

    monkeypatch.setattr(Memory, "create", slow)
    monkeypatch.setattr(resume, "MAKERS", 1)
    refill.begin(HERE)
    refill.give(restored.pids)
    assert made == [4 * MIB, 2 * MIB, 2 * MIB]
    assert restored.now == restored.digests


def test_there_is_no_room_for_all_of_it(restored: Restored, refill: Refill) -> None:
    """What was made is not kept from others until somebody asks."""
    cuda, before = restored.cuda, used(restored.cuda)
    (cuda.folder / "memory").write_text(str(before + 7 * MIB))
    refill.begin(HERE)
    with pytest.raises(GpuFailed, match="OUT_OF_MEMORY"):
        refill.made()
    assert used(cuda) == before
    with pytest.raises(GpuFailed, match="OUT_OF_MEMORY"):
        refill.give(restored.pids)
    (cuda.folder / "memory").unlink()
    again = restored.refill()
    again.begin(HERE)
    again.give(restored.pids)
    again.close()
    assert restored.now == restored.digests


def test_onto_another_gpu(cuda: FakeCuda, restored: Restored, refill: Refill) -> None:
    there = numbered(H100, 1).uuid
    cuda.forget()
    refill.begin({GPU.uuid: there})
    with pytest.raises(GpuFailed):  # the fake driver has one only
        refill.made()


@pytest.mark.parametrize(
    ("call", "words"),
    [("cuMemCreate", "cuMemCreate"), ("cuMemcpyHtoDAsync_v2", "cuMemcpyHtoDAsync")],
)
def test_the_driver_refuses(restored: Restored, refill: Refill, call: str, words: str) -> None:
    restored.cuda.answer(call, OUT_OF_MEMORY, always=True)
    refill.begin(HERE)
    with pytest.raises(GpuFailed, match=f"{words}.*OUT_OF_MEMORY|OUT_OF_MEMORY.*{words}"):
        refill.give(restored.pids)
    assert restored.states == [EMPTIED] * 2


def test_a_flipped_byte(restored: Restored) -> None:
    """It is found before anybody gets anything."""
    path = restored.snapshot.piece("gpu-1.img.0000")
    data = bytearray(path.read_bytes())
    data[100_000 - (64 << 10)] ^= 1
    path.write_bytes(data)
    refill = restored.refill()
    refill.begin(HERE)
    with pytest.raises(Damaged, match="checksum"):
        refill.give(restored.pids)
    refill.close()
    assert restored.states == [EMPTIED] * 2


def test_a_piece_of_another_size(restored: Restored) -> None:
    path = restored.snapshot.piece("gpu-1.img.0000")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged, match="had 131072"):
        restored.refill()


def test_one_that_cannot_take_it(restored: Restored, refill: Refill) -> None:
    """Then the other does not go on either."""
    restored.peers[1].play(GIVE={"status": CUDA, "value": OUT_OF_MEMORY})
    refill.begin(HERE)
    with pytest.raises(GpuFailed, match=f"process {restored.peers[1].pid}"):
        refill.give(restored.pids)
    assert restored.states == [EMPTIED] * 2


def test_one_that_wants_none(restored: Restored, refill: Refill) -> None:
    restored.peers[1].play(HELLO={"state": RUNNING})
    refill.begin(HERE)
    with pytest.raises(GpuFailed, match="its library is running"):
        refill.give(restored.pids)


def test_one_that_is_not_there(restored: Restored, refill: Refill) -> None:
    restored.peers[1].kill()
    refill.begin(HERE)
    with pytest.raises(RestoreFailed, match="process 2 of the container has GPU memory to get"):
        refill.give(restored.pids)
    assert restored.peers[0].state == EMPTIED


def test_given_up_half_way(restored: Restored) -> None:
    """Whenever that is."""
    for begin in (False, True):
        refill = restored.refill()
        refill.prefetch()
        if begin:
            refill.begin(HERE)
        refill.close()
