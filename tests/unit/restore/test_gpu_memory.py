"""When GPU memory is filled, and where: early if there is but one way, else once it is known."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from fakes.cuda import FakeCuda
from fakes.cufile import FakeCufile
from fakes.gpu import Program
from fakes.gpu_conversation import LIBRARY, Conversation
from fakes.moving import movement
from fakes.nvml import A100, GIB, H100, machine, numbered
from fakes.settled import PATIENCE, eventually
from fakes.snapshots import CONFIG, HOST, write

from shim.config import Config
from shim.errors import GpuFailed, Unfit
from shim.gpu.memory import cufile, index
from shim.gpu.memory.device import Memory
from shim.gpu.memory.making import Delivered
from shim.gpu.node import Node
from shim.gpu.nvml import Gpu
from shim.restore.gpu_memory import GpuMemory, certain
from shim.snapshot.config import Gpu as Kind
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.cuda import CONTEXT, CudaProcess, CudaState
from shim.snapshot.snapshot import Snapshot

OLD = numbered(H100, 9).uuid  # of a GPU that is not here
HERE = numbered(H100, 0).uuid
KIND = Kind(H100.model, H100.memory, H100.driver, 1)
OUT_OF_MEMORY = 2
INVALID_DEVICE = 101


@pytest.fixture
def program(cuda: FakeCuda) -> Iterator[Program]:
    with Program(cuda, preload=LIBRARY) as started:
        started.ask("alloc 4M")
        started.ask("fill 1 1")
        yield started


@pytest.fixture
def whole(program: Program) -> str:
    """What its memory adds up to."""
    return program.ask("sum 1")


@pytest.fixture
def snapshot(cuda: FakeCuda, program: Program, whole: str, tmp_path: Path) -> Snapshot:
    """Of the program, which has lost its memory since."""
    pages = tmp_path / "pages"
    pages.mkdir()
    memory = Memory.open(cuda.library)
    with movement(memory, [program], seconds=PATIENCE) as moved:
        moved.save([pages], [program.pid])
        regions = [replace(region, gpu=OLD) for region in moved.regions(program.pid)]
        moved.give_back()
        saved = moved.finish()
    memory.close()
    data = (pages / "gpu-1.img.0000").read_bytes()
    config = replace(
        CONFIG,
        host=replace(HOST, gpus=[KIND]),
        gpu=CudaState([CudaProcess(1, [], regions)], [OLD], {OLD: GIB}),
        pages={**CONFIG.pages, "gpu-1.img.0000": len(data)},
    )
    folder = write(tmp_path / "one", config)
    (folder / "pages" / "gpu-1.img.0000").write_bytes(data)
    index.write(folder / "index", saved.extents)
    with Conversation(program.pid) as conversation:
        conversation.emptied()
    return Snapshot(folder)


class FakeNode(Node):
    """One whose GPUs are `there`."""

    def __init__(self, *gpus: Gpu) -> None:
        super().__init__()
        self.there = machine(*gpus)
        self.asked = 0

    def gpus(self) -> Sequence[Gpu]:
        return self.now()

    def now(self) -> Sequence[Gpu]:
        self.asked += 1
        return self.there

    def anew(self) -> Sequence[Gpu]:
        return self.now()


def of(snapshot: Snapshot, cuda: FakeCuda, node: FakeNode, **more: Any) -> GpuMemory:
    return GpuMemory(Config({"gpu.library": cuda.library, **more}), snapshot, node)


def bring_back(memory: GpuMemory, program: Program) -> None:
    """What is left to do once it is known where it shall be."""
    memory.judge([(OLD, HERE)], 0.0)
    memory.ready(0.0)
    memory.give({1: program.pid})


def made(cuda: FakeCuda) -> int:
    return cuda.count("cuMemCreate")


@pytest.fixture(autouse=True)
def _traced(cuda: FakeCuda) -> None:
    cuda.trace()


def test_early(snapshot: Snapshot, cuda: FakeCuda, program: Program, whole: str) -> None:
    """There is one GPU, and it is free: there is nothing to wait for."""
    before = made(cuda)
    memory = of(snapshot, cuda, FakeNode(H100))
    memory.expect()
    eventually(lambda: made(cuda) > before)
    bring_back(memory, program)
    memory.close()
    assert made(cuda) == before + 1, "it was made once"
    assert program.ask("sum 1") == whole


def test_what_is_said_of_it(snapshot: Snapshot, cuda: FakeCuda, program: Program) -> None:
    memory = of(snapshot, cuda, FakeNode(H100))
    assert memory.report() == ""
    bring_back(memory, program)
    words = [word.partition("=")[0] for word in memory.report().split()]
    assert words[:2] == ["gib", "stored"]
    assert {"make", "fill", "filled", "give"} <= set(words)
    memory.close()


def test_what_is_said_of_cufile(
    snapshot: Snapshot,
    cuda: FakeCuda,
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is tried if the operator says so; what it could not do is in the log."""
    monkeypatch.setattr(cufile, "MODULES", str(tmp_path))
    config = Config({"gpu.library": cuda.library, "gpu.storage": "cufile"})
    memory = GpuMemory(config, snapshot, FakeNode(H100))
    memory._storage = memory._storage._replace(library="/nowhere/libcufile.so.0")
    memory.judge([(OLD, HERE)], 0.0)
    memory.give({1: program.pid})
    assert ' from=ring cufile="/nowhere/libcufile.so.0: cannot open' in memory.report()
    memory.close()


def test_by_cufile(
    snapshot: Snapshot,
    cuda: FakeCuda,
    program: Program,
    whole: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cufile, "MODULES", str(tmp_path))
    config = Config({"gpu.library": cuda.library, "gpu.storage": "cufile"})
    memory = GpuMemory(config, snapshot, FakeNode(H100))
    memory._storage = memory._storage._replace(library=FakeCufile(cuda).library)
    memory.judge([(OLD, HERE)], 0.0)
    memory.give({1: program.pid})
    assert " from=cufile " in memory.report()
    memory.close()
    assert program.ask("sum 1") == whole


def test_not_before_it_is_known_where(snapshot: Snapshot, cuda: FakeCuda, program: Program) -> None:
    """Of two it could be either: the container is waited for."""
    before = made(cuda)
    node = FakeNode(H100, H100)
    memory = of(snapshot, cuda, node)
    memory.expect()
    memory._end_early()
    assert node.asked == 1
    assert made(cuda) == before
    bring_back(memory, program)
    memory.close()


def test_not_before_there_is_room(snapshot: Snapshot, cuda: FakeCuda, program: Program) -> None:
    """For all of it: also what the driver needs, and a context of our own."""
    before = made(cuda)
    node = FakeNode(replace(H100, free=GIB + CONTEXT))
    memory = of(snapshot, cuda, node)
    memory.expect()
    eventually(lambda: node.asked >= 4)
    assert made(cuda) == before
    with pytest.raises(Unfit, match=r"has 1\.5 GiB free, 1\.5 GiB are needed"):
        memory.judge([(OLD, HERE)], 0.0)
    node.there = machine(H100)
    bring_back(memory, program)
    memory.close()


def test_not_while_somebody_is_on_it(snapshot: Snapshot, cuda: FakeCuda, program: Program) -> None:
    """There is room, but it may be another pod's GPU."""
    before = made(cuda)
    node = FakeNode(replace(H100, processes=(1,)))
    memory = of(snapshot, cuda, node)
    memory.expect()
    eventually(lambda: node.asked >= 4)
    assert made(cuda) == before
    node.there = machine(H100)
    eventually(lambda: made(cuda) > before)
    bring_back(memory, program)
    memory.close()
    assert made(cuda) == before + 1


def test_the_container_has_it_all_the_same(
    snapshot: Snapshot, cuda: FakeCuda, program: Program, whole: str
) -> None:
    """Several may share one."""
    memory = of(snapshot, cuda, FakeNode(replace(H100, processes=(1,))))
    memory.expect()
    bring_back(memory, program)
    memory.close()
    assert program.ask("sum 1") == whole


@pytest.mark.parametrize("processes", [(os.getpid(),), (4711,), (4711, os.getpid())])
def test_who_does_not_count(
    snapshot: Snapshot, cuda: FakeCuda, program: Program, processes: tuple[int, ...]
) -> None:
    """This process, and the one that has the node's cache."""
    before = made(cuda)
    memory = of(snapshot, cuda, FakeNode(replace(H100, processes=processes)))
    memory._holder = lambda: 4711  # type: ignore[assignment]
    memory.expect()
    eventually(lambda: made(cuda) > before)
    bring_back(memory, program)
    memory.close()


def test_not_before_there_is_a_container(
    snapshot: Snapshot, cuda: FakeCuda, program: Program, whole: str
) -> None:
    """If the operator wants it so."""
    before = made(cuda)
    node = FakeNode(H100)
    memory = of(snapshot, cuda, node, **{"gpu.begin": "container"})
    memory.expect()
    memory._end_early()
    assert (made(cuda), node.asked) == (before, 0)
    bring_back(memory, program)
    memory.close()
    assert program.ask("sum 1") == whole


def test_it_gives_way(snapshot: Snapshot, cuda: FakeCuda, program: Program, whole: str) -> None:
    """Another container has the GPU first; after it, it is made once more."""
    before = made(cuda)
    memory = of(snapshot, cuda, FakeNode(H100))
    memory.expect()
    eventually(lambda: made(cuda) > before)
    memory.close()
    assert cuda.count("cuMemRelease") >= 1
    bring_back(memory, program)
    memory.close()
    assert made(cuda) == before + 2
    assert program.ask("sum 1") == whole


def test_begun_on_another(snapshot: Snapshot, cuda: FakeCuda, program: Program) -> None:
    """What was begun is given up, and made where it shall be."""
    before = made(cuda)
    memory = of(snapshot, cuda, FakeNode(H100))
    memory.expect()
    eventually(lambda: made(cuda) > before)
    with pytest.raises(Unfit, match="no GPU"):
        memory.judge([(OLD, numbered(H100, 5).uuid)], 0.0)
    bring_back(memory, program)
    memory.close()
    assert made(cuda) == before + 2


def test_somebody_was_quicker(
    snapshot: Snapshot, cuda: FakeCuda, program: Program, whole: str
) -> None:
    """It is tried anew, once it is known that there is room."""
    cuda.answer("cuMemCreate", OUT_OF_MEMORY)
    before = made(cuda)
    memory = of(snapshot, cuda, FakeNode(H100))
    memory.expect()
    eventually(lambda: made(cuda) > before)
    bring_back(memory, program)
    memory.close()
    assert program.ask("sum 1") == whole


def test_no_room_after_all(snapshot: Snapshot, cuda: FakeCuda, program: Program) -> None:
    cuda.answer("cuMemCreate", OUT_OF_MEMORY, OUT_OF_MEMORY)
    memory = of(snapshot, cuda, FakeNode(H100))
    memory.judge([(OLD, HERE)], 0.0)
    with pytest.raises(GpuFailed, match="OUT_OF_MEMORY"):
        memory.ready(0.0)
    memory.close()


def test_none_for_the_driver(snapshot: Snapshot, cuda: FakeCuda, program: Program) -> None:
    """What is ours is there, and somebody has taken the rest meanwhile."""
    node = FakeNode(H100)
    memory = of(snapshot, cuda, node)
    memory.judge([(OLD, HERE)], 0.0)
    node.there = machine(replace(H100, free=GIB - 1))
    with pytest.raises(Unfit, match=r"1\.0 GiB are needed"):
        memory.ready(0.0)
    memory.close()


def test_a_process_that_takes_none_makes_it_itself(
    snapshot: Snapshot, cuda: FakeCuda, program: Program, whole: str
) -> None:
    """As one that the driver has restored on another GPU. From then on all of it is the driver's:
    what were taken out of such a process could not be given back.
    """
    cuda.answer("cuMemImportFromShareableHandle", INVALID_DEVICE, pid=program.pid, always=True)
    memory = of(snapshot, cuda, FakeNode(H100))
    bring_back(memory, program)
    memory.close()
    assert program.ask("sum 1") == whole
    program.ask("alloc 6M")
    with Conversation(program.pid) as library:
        about = library.about()
    assert (about.movable, about.left, about.given) == (0, {"other": 10 << 20}, False)


@pytest.mark.parametrize("takes", [True, False])
def test_what_came_from_the_cache(
    snapshot: Snapshot, cuda: FakeCuda, program: Program, whole: str, takes: bool
) -> None:
    """Of that this process has descriptors only, until there is somebody who takes none."""
    if not takes:
        cuda.answer("cuMemImportFromShareableHandle", INVALID_DEVICE, pid=program.pid, always=True)
    first, memory = (of(snapshot, cuda, FakeNode(H100)) for _ in range(2))
    first.judge([(OLD, HERE)], 0.0)
    first.ready(0.0)
    refill = first._refill
    assert refill is not None
    refill._all().settle()
    assert refill._thread is not None
    refill._thread.join()

    regions = refill._regions()

    class Cache:
        def has(self) -> bool:
            return True

        def fill(self, wanted: object, made: Callable[[], None]) -> list[Delivered]:
            made()
            return [Delivered(r.uuid, r.size, r.descriptor()) for r in regions]

        def cancel(self) -> None:
            pass

    memory._cached = lambda *_: cast("Any", Cache())  # type: ignore[assignment]
    bring_back(memory, program)
    assert "from=cache" in memory.report()
    opened = memory._refill is not None and memory._refill._memory is not None
    assert opened is not takes
    memory.close()
    first.close()
    assert program.ask("sum 1") == whole


def test_no_room_for_a_piece_more(snapshot: Snapshot, cuda: FakeCuda, program: Program) -> None:
    cuda.answer("cuMemImportFromShareableHandle", INVALID_DEVICE, pid=program.pid, always=True)
    cuda.answer("cuMemCreate", OUT_OF_MEMORY, pid=program.pid)
    memory = of(snapshot, cuda, FakeNode(H100))
    memory.judge([(OLD, HERE)], 0.0)
    memory.ready(0.0)
    with pytest.raises(GpuFailed, match="cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY"):
        memory.give({1: program.pid})
    memory.close()


def test_it_is_of_that_snapshot(snapshot: Snapshot, cuda: FakeCuda, tmp_path: Path) -> None:
    memory = of(snapshot, cuda, FakeNode(H100))
    assert memory.is_of(Snapshot(snapshot.path))
    other = write(tmp_path / "other", snapshot.config)
    assert not memory.is_of(Snapshot(other))
    memory.close()


def kinds(count: int) -> SnapshotConfig:
    uuids = [numbered(H100, 9 + n).uuid for n in range(count)]
    state = CudaState([CudaProcess(1)], uuids, {})
    return replace(CONFIG, host=replace(HOST, gpus=[replace(KIND, count=count)]), gpu=state)


def test_where_there_is_but_one_way() -> None:
    assert certain(kinds(1), machine(H100)) == {OLD: HERE}
    assert certain(kinds(1), machine(H100, H100)) == {}
    assert certain(kinds(1), machine(A100)) == {}
    assert certain(kinds(1), machine(replace(H100, mig=True))) == {}
    both = certain(kinds(2), machine(H100, H100))
    assert list(both.values()) == [numbered(H100, 0).uuid, numbered(H100, 1).uuid]
