"""Which memory is bulk, and where each run of it lies."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fakes.images import BASE, LARGE, Images, noise, pages, single, vma
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.proto import criu_pb as pb
from shim.snapshot import images as criu
from shim.snapshot import layout as layouts
from shim.snapshot import pieces
from shim.snapshot.images import PAGE, NotIndexable
from shim.snapshot.layout import (
    ANONYMOUS,
    BULK,
    COMPARED,
    NO_TASK,
    SMALL,
    Layout,
    Run,
    by_turns,
    in_pieces,
    packed,
    survey,
)
from shim.snapshot.pieces import Piece

STACK = 0x7FFF_0000_0000
SMALL_PIECE = {STACK: noise(PAGE)}  # something for CRIU, so that nothing has to be left to it


def runs_of(folder: Path, memory: dict[int, bytes], *vmas: pb.Vma) -> list[Run]:
    """The runs of one process that also has a stack, without those of the stack."""
    stack = vma(STACK, PAGE, flags=0x122)
    layout = survey(single(folder, {**memory, **SMALL_PIECE}, *vmas, stack))
    return [run for run in layout.runs if run.address < STACK]


def bulk(layout: Layout) -> list[tuple[int, int]]:
    return [(run.address, run.length) for run in layout.runs if run.flags & BULK]


def test_a_run(tmp_path: Path) -> None:
    memory = {BASE: noise(LARGE)}
    assert runs_of(tmp_path, memory, vma(BASE, LARGE)) == [
        Run(BASE, 0, LARGE, 0, 0, ANONYMOUS | BULK)
    ]
    assert runs_of(tmp_path, memory, vma(BASE, LARGE, "file")) == [Run(BASE, 0, LARGE, 0, 0, BULK)]
    assert runs_of(tmp_path, memory, vma(BASE, LARGE, prot=1)) == [
        Run(BASE, 0, LARGE, 0, 0, ANONYMOUS)
    ]


def test_small_ones_stay(tmp_path: Path) -> None:
    memory = {BASE: noise(SMALL), BASE + LARGE: noise(SMALL - PAGE)}
    runs = runs_of(tmp_path, memory, vma(BASE, 2 * LARGE))
    assert [run.flags & BULK for run in runs] == [BULK, 0]
    assert runs[1].offset == SMALL


def test_a_run_ends_with_its_mapping(tmp_path: Path) -> None:
    """However CRIU cut its entries: it cuts them by the mebibyte, and flags of pages."""
    memory = {BASE: noise(4 * LARGE)}
    vmas = [
        vma(BASE, LARGE),
        vma(BASE + LARGE, SMALL - PAGE),
        vma(BASE + LARGE + SMALL - PAGE, 3 * LARGE),
    ]
    runs = runs_of(tmp_path, memory, *vmas)
    assert [(run.address - BASE, run.length, run.flags & BULK) for run in runs] == [
        (0, LARGE, BULK),
        (LARGE, SMALL - PAGE, 0),
        (LARGE + SMALL - PAGE, 3 * LARGE - SMALL + PAGE, BULK),
    ]
    assert [run.offset for run in runs] == [0, LARGE, LARGE + SMALL - PAGE]


def test_pages_outside_mappings(tmp_path: Path) -> None:
    for start in (BASE + PAGE, BASE - LARGE):
        with pytest.raises(NotIndexable, match=r"has pages at 0x7f0000.*, outside mappings"):
            survey(single(tmp_path, {BASE: noise(LARGE)}, vma(start, LARGE)))


def test_each_process_keeps_an_entry(tmp_path: Path) -> None:
    """CRIU looks at the first one without asking whether there is one."""
    layout = survey(single(tmp_path, {BASE: noise(LARGE), BASE + 2 * LARGE: noise(LARGE)}))
    assert layout.runs == [
        Run(BASE, 0, PAGE, 0, 0, ANONYMOUS),
        Run(BASE + PAGE, PAGE, LARGE - PAGE, 0, 0, ANONYMOUS | BULK),
        Run(BASE + 2 * LARGE, LARGE, LARGE, 0, 0, ANONYMOUS | BULK),
    ]


def test_restartable_sequences_stay(tmp_path: Path) -> None:
    """The kernel has written there before we do: a page with a registered area is CRIU's."""
    images = Images(tmp_path)
    areas = {1: BASE + LARGE + 32, 2: BASE + 2 * LARGE - 32, 3: BASE + 3 * LARGE - 16, 4: BASE}
    memory = {BASE: noise(4 * LARGE), **SMALL_PIECE}
    images.process(1, [vma(BASE, 4 * LARGE), vma(STACK, PAGE)], memory, rseq=areas)
    found = [(run.address - BASE, run.length) for run in survey(images.write()).runs]
    assert found == [
        (0, PAGE),
        (PAGE, LARGE - PAGE),
        (LARGE, PAGE),
        (LARGE + PAGE, LARGE - 2 * PAGE),
        (2 * LARGE - PAGE, PAGE),
        (2 * LARGE, LARGE - PAGE),
        (3 * LARGE - PAGE, PAGE),
        (3 * LARGE, PAGE),
        (3 * LARGE + PAGE, LARGE - PAGE),
        (STACK - BASE, PAGE),
    ]
    kept = {run.address for run in survey(tmp_path).runs if not run.flags & BULK}
    pages_of_areas = {address & -PAGE for address in areas.values()}
    assert kept == pages_of_areas | {BASE + 3 * LARGE, STACK}, "one area is across two pages"


def test_what_a_child_may_share_is_to_be_compared(tmp_path: Path) -> None:
    images = Images(tmp_path)
    memory = {BASE: noise(LARGE), BASE + 2 * LARGE: noise(LARGE), **SMALL_PIECE}
    stack = vma(STACK, PAGE, flags=0x122)
    both = [vma(BASE, LARGE), vma(BASE + 2 * LARGE, LARGE), stack]
    moved = [vma(BASE, LARGE), vma(BASE + 2 * LARGE, LARGE + PAGE), stack]
    images.process(1, both, memory)
    images.process(2, moved, memory, parent=1)
    images.process(3, both, memory, parent=1, executable=2)
    images.process(4, both, memory, parent=9)
    layout = survey(images.write())
    compared = [(run.task, run.address) for run in layout.runs if run.flags & COMPARED]
    assert compared == [(0, BASE), (1, BASE)]
    assert [(p.child, p.parent, p.start, p.end) for p in layout.pairs] == [
        (1, 0, BASE, BASE + LARGE),
        (1, 0, STACK, STACK + PAGE),
    ]


class Shared:
    """One process with mappings of one shared object of four times LARGE."""

    def __init__(self, folder: Path) -> None:
        self.images = Images(folder)
        self.memory = {0: noise(4 * LARGE)}

    def survey(self, *vmas: pb.Vma, kind: str = "memfd", **changes: Any) -> list[Run]:
        if kind == "memfd":
            self.images.memfd(5, 77, self.memory, **changes)
        else:
            self.images.shared(5, self.memory)
        self.images.process(1, [*vmas, vma(STACK, PAGE)], SMALL_PIECE)
        return [run for run in survey(self.images.write()).runs if run.source]


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path)


@pytest.mark.parametrize("kind", ["memfd", "shared"])
def test_shared_memory(shared: Shared, kind: str) -> None:
    assert shared.survey(vma(BASE, 4 * LARGE, kind, shmid=5), kind=kind) == [
        Run(BASE, 0, 4 * LARGE, 0, 1, BULK)
    ]


def test_shared_memory_in_parts(shared: Shared) -> None:
    """Each part through the first mapping that can be written; what has none is CRIU's."""
    runs = shared.survey(
        vma(BASE, 2 * LARGE, "memfd", shmid=5, prot=1),
        vma(BASE + 8 * LARGE, LARGE, "memfd", shmid=5, pgoff=LARGE),
        vma(BASE + 9 * LARGE, LARGE, "memfd", shmid=5, pgoff=LARGE),
        vma(BASE + 16 * LARGE, LARGE, "memfd", shmid=5, pgoff=3 * LARGE),
    )
    assert runs == [
        Run(BASE, 0, LARGE, 0, 1, 0),
        Run(BASE + 8 * LARGE, LARGE, LARGE, 0, 1, BULK),
        Run(2 * LARGE, 2 * LARGE, LARGE, NO_TASK, 1, 0),
        Run(BASE + 16 * LARGE, 3 * LARGE, LARGE, 0, 1, BULK),
    ]


PLACES = st.tuples(st.integers(0, 30), st.integers(1, 12), st.booleans())


@settings(deadline=None)
@given(st.lists(PLACES, max_size=12))
def test_the_best_mapping_is_taken_everywhere(places: list[tuple[int, int, bool]]) -> None:
    mappings = [
        layouts._Mapping(start, start + size, 0, number, bulk)
        for number, (start, size, bulk) in enumerate(places)
    ]
    found = layouts._stretches(mappings)
    taken = {at: s.mapping for s in found for at in range(s.start, s.end)}
    assert taken == {
        at: next(m for m in mappings if m.start <= at < m.end)
        for at in range(50)
        if any(m.start <= at < m.end for m in mappings)
    }
    assert sum(s.end - s.start for s in found) == len(taken)
    for one, other in pairwise(found):
        assert one.end < other.start or (one.end == other.start and one.mapping != other.mapping)


@pytest.mark.timeout(60)
def test_many_mappings_of_one_memory(shared: Shared) -> None:
    """Tasks are stopped meanwhile: 30,000 took minutes when each was compared with each."""
    count = 30_000
    shared.memory = {at * 2 * PAGE: bytes(PAGE) for at in range(count)}
    vmas = [
        vma(BASE + at * 4 * PAGE, 2 * PAGE, "memfd", shmid=5, pgoff=at * 2 * PAGE)
        for at in range(count)
    ]
    runs = shared.survey(*reversed(vmas))
    assert [run.address for run in runs] == [mapping.start for mapping in vmas]


def test_shared_memory_that_nobody_maps(shared: Shared) -> None:
    assert shared.survey() == [Run(0, 0, 4 * LARGE, NO_TASK, 1, 0)]


def test_shared_memory_with_holes(shared: Shared) -> None:
    shared.memory = {0: noise(LARGE), 3 * LARGE: noise(LARGE)}
    assert shared.survey(vma(BASE, 4 * LARGE, "memfd", shmid=5)) == [
        Run(BASE, 0, LARGE, 0, 1, BULK),
        Run(BASE + 3 * LARGE, LARGE, LARGE, 0, 1, BULK),
    ]


@pytest.mark.parametrize("changes", [{"seals": 8}, {"seals": 16}, {"hugetlb_flag": 4}], ids=str)
def test_shared_memory_that_may_not_be_written(shared: Shared, changes: dict[str, Any]) -> None:
    runs = shared.survey(vma(BASE, 4 * LARGE, "memfd", shmid=5), **changes)
    assert runs == [Run(BASE, 0, 4 * LARGE, 0, 1, 0)], "it can be read there all the same"


def test_system_v_shared_memory_stays(shared: Shared) -> None:
    segment = vma(BASE, 4 * LARGE, "shared", shmid=5, status=0x501)
    other = vma(BASE + 4 * LARGE, 4 * LARGE, "shared", shmid=5)
    assert shared.survey(segment, other, kind="shared") == [
        Run(BASE + 4 * LARGE, 0, 4 * LARGE, 0, 1, 0)
    ]


def test_a_mapping_of_a_part_of_a_page(shared: Shared) -> None:
    with pytest.raises(NotIndexable, match="is of a part of a page"):
        shared.survey(vma(BASE, LARGE, "memfd", shmid=5, pgoff=1))


def test_no_pages_file_is_read(tmp_path: Path) -> None:
    """The layout is known while the pages are still in memory: CRIU's go to /dev/null then."""
    single(tmp_path, {BASE: noise(LARGE)})
    before = survey(tmp_path)
    (tmp_path / "pages-1.img").unlink()
    (tmp_path / "pages-1.img").symlink_to("/dev/null")
    assert survey(tmp_path) == before
    assert before.sources == [Piece("pages-1.img", LARGE, 0, 0)]


@pytest.mark.parametrize("size", [1, 3, 32, 100])
def test_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The same memory at the same places of the same files, and no run in two pieces."""
    images = Images(tmp_path)
    vmas = [vma(BASE, 4 * LARGE), vma(BASE + 4 * LARGE, LARGE, "memfd", shmid=40)]
    images.process(1, vmas, {BASE: noise(2 * LARGE), BASE + 3 * LARGE: noise(PAGE)})
    images.process(2, vmas, {}, parent=1)
    images.memfd(40, 77, {0: noise(LARGE)})
    whole = survey(images.write())
    monkeypatch.setattr(pieces, "PIECE", size * PAGE)
    cut = in_pieces(whole)
    assert (cut.tasks, cut.pagemaps, cut.pairs) == (whole.tasks, whole.pagemaps, whole.pairs)
    assert {piece.name[:11] for piece in cut.sources} == {"pages-1.img", "pages-3.img"}
    back = []
    for run in cut.runs:
        piece = cut.sources[run.source]
        assert run.offset + run.length <= piece.size <= size * PAGE
        place = run._replace(source=piece.file, offset=piece.start + run.offset)
        back += [place._replace(address=place.address + at, offset=place.offset + at, length=PAGE)
                 for at in range(0, run.length, PAGE)]  # fmt: skip
    assert back == [
        run._replace(address=run.address + at, offset=run.offset + at, length=PAGE)
        for run in whole.runs
        for at in range(0, run.length, PAGE)
    ]


def test_more_pieces_than_can_be_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = survey(single(tmp_path, {BASE: noise(LARGE)}))
    monkeypatch.setattr(pieces, "PIECE", PAGE)
    monkeypatch.setattr(pieces, "_MOST", LARGE // PAGE - 1)
    with pytest.raises(NotIndexable, match="more than 31 pieces"):
        in_pieces(whole)
    monkeypatch.setattr(pieces, "_MOST", 10_000)
    monkeypatch.setattr(layouts, "_MOST_SOURCES", LARGE // PAGE - 1)
    with pytest.raises(NotIndexable, match="32 files of pages"):
        in_pieces(whole)


def test_runs_are_written_to_all_disks_by_turns() -> None:
    turn = 8 << 20
    runs = [Run(BASE, 0, 3 * turn, 0, 0, 0), Run(BASE + 3 * turn + PAGE, 0, 2 * turn, 0, 1, 0)]
    assert by_turns(runs, ["one", "one"]) == runs
    found = by_turns(runs, ["one", "two"])
    assert [run.source for run in found] == [0, 1, 0, 1, 0, 1]
    for run in found:
        assert (run.address + run.length) % turn == 0 or run in (found[5], found[4])
    joined = sorted(found, key=lambda run: (run.source, run.offset))
    assert [run.length for run in joined] == [turn, turn, turn, turn - PAGE, turn, PAGE]


def test_every_page_is_in_one_run(tmp_path: Path) -> None:
    images = Images(tmp_path)
    memory = {BASE: noise(3 * LARGE), BASE + 4 * LARGE: noise(PAGE), **SMALL_PIECE}
    vmas = [vma(BASE, 2 * LARGE), vma(BASE + 2 * LARGE, 3 * LARGE), vma(STACK, PAGE)]
    images.process(1, vmas, memory, rseq={1: BASE + LARGE})
    layout = survey(images.write())
    listed = [
        (run.address + at, run.offset + at)
        for run in layout.runs
        for at in range(0, run.length, PAGE)
    ]
    assert listed == [
        (address, n * PAGE) for n, address in enumerate(pages(tmp_path, "pagemap-1.img"))
    ]


def without_pagemap(images: Images) -> None:
    (images.folder / "pagemap-1.img").unlink()


def too_many(images: Images) -> None:
    images.pagemap("pagemap-2.img", {})


def one_file_twice(images: Images) -> None:
    content = (images.folder / "pagemap-1.img").read_bytes()
    (images.folder / "pagemap-shmem-3.img").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_pagemap, r"pagemap-1\.img is missing"),
        (too_many, "processes that have no memory"),
        (one_file_twice, "two pagemaps have one pages file"),
    ],
)
def test_pagemaps_that_do_not_fit(
    tmp_path: Path, spoil: Callable[[Images], None], words: str
) -> None:
    images = Images(tmp_path)
    images.process(1, [vma(BASE, LARGE)], {BASE: noise(LARGE)})
    images.write()
    spoil(images)
    with pytest.raises(NotIndexable, match=words):
        survey(tmp_path)


def test_packed_as_the_header_has_it() -> None:
    run = Run(BASE, PAGE, LARGE, 3, 4, ANONYMOUS | BULK | COMPARED)
    assert struct.unpack("<QQQIHH", packed([run])) == (BASE, PAGE, LARGE, 3, 4, 3)
    assert len(packed([run, run])) == 64


def test_the_tree_is_by_pid(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.zombie(4)
    images.process(9, [vma(BASE, PAGE)], {BASE: noise(PAGE)}, parent=2)
    images.process(2, [vma(BASE, PAGE)], {BASE: noise(PAGE)})
    layout = survey(images.write())
    assert layout.tasks == [2, 9]
    assert [pagemap.name for pagemap in layout.pagemaps] == ["pagemap-2.img", "pagemap-9.img"]
    assert criu.tree(tmp_path)[0].pid == 4
