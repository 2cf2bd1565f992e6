"""What a child still shares with its parent stays with CRIU; nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.images import BASE, LARGE, Images, Memory, noise, vma

from shim.snapshot import pieces, sharing
from shim.snapshot.images import PAGE, NotIndexable
from shim.snapshot.indexing import make
from shim.snapshot.layout import ANONYMOUS, BULK, COMPARED, SMALL, in_pieces, survey
from shim.snapshot.pieces import Pieces
from shim.snapshot.sharing import compare

STACK = 0x7FFF_0000_0000
DATA = noise(8 * LARGE, 1)
OTHER = noise(8 * LARGE, 2)


def family(folder: Path, *memories: Memory, kind: str = "private") -> Path:
    """Processes, each the child of the one before, with one mapping and a stack."""
    images = Images(folder)
    for pid, memory in enumerate(memories, 1):
        vmas = [vma(BASE, 16 * LARGE, kind), vma(STACK, PAGE, flags=0x122)]
        images.process(pid, vmas, {**memory, STACK: noise(PAGE)}, parent=pid - 1)
    return images.write()


def bulk(folder: Path) -> list[list[tuple[int, int]]]:
    """Of each process, what is bulk after the comparison: distance from BASE, length."""
    layout = compare(survey(folder), Pieces([folder]))
    assert not any(run.flags & COMPARED for run in layout.runs)
    return [
        [(r.address - BASE, r.length) for r in layout.runs if r.task == task and r.flags & BULK]
        for task in range(len(layout.tasks))
    ]


def changed(*places: tuple[int, int]) -> bytes:
    """DATA with other bytes in places: where, how long."""
    made = bytearray(DATA)
    for start, length in places:
        made[start : start + length] = OTHER[start : start + length]
    return bytes(made)


def test_all_is_shared(tmp_path: Path) -> None:
    assert bulk(family(tmp_path, {BASE: DATA}, {BASE: DATA})) == [[], []]


def test_nothing_is(tmp_path: Path) -> None:
    assert bulk(family(tmp_path, {BASE: DATA}, {BASE: OTHER})) == [[(0, 8 * LARGE)]] * 2


def test_a_part_is(tmp_path: Path) -> None:
    theirs = changed((LARGE, LARGE), (4 * LARGE, SMALL - PAGE), (6 * LARGE, SMALL))
    found = bulk(family(tmp_path, {BASE: DATA}, {BASE: theirs}))
    assert found == [[(LARGE, LARGE), (6 * LARGE, SMALL)]] * 2


def test_single_pages_count(tmp_path: Path) -> None:
    """Many workers touch a page here and there: what lies between must not be multiplied."""
    theirs = changed(*((at, 1) for at in range(0, 8 * LARGE, 8 * PAGE)))
    assert bulk(family(tmp_path, {BASE: DATA}, {BASE: theirs})) == [[], []]


def test_pages_that_are_equal_by_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a few runs, and the index is the same as if each page were one."""
    places = [(at, PAGE) for at in range(0, 4 * LARGE, 2 * PAGE)]
    places += [(5 * LARGE, SMALL - PAGE), (6 * LARGE, SMALL), (7 * LARGE + PAGE, SMALL + PAGE)]
    folder = family(tmp_path / "images", {BASE: DATA}, {BASE: changed(*places)})
    joined = compare(survey(folder), Pieces([folder])).runs
    make(folder, tmp_path / "joined")
    monkeypatch.setattr(sharing, "_GAP", 1)
    apart = compare(survey(folder), Pieces([folder])).runs
    make(folder, tmp_path / "apart")
    assert len(joined) < 20
    assert len(apart) > 2 * len(places)
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("joined", "apart")
    )
    assert one == other
    assert [r for r in joined if r.flags & BULK] == [r for r in apart if r.flags & BULK] != []


def test_memory_that_only_one_has(tmp_path: Path) -> None:
    ours, theirs = {BASE: DATA}, {BASE: DATA[:LARGE], BASE + 8 * LARGE: OTHER}
    assert bulk(family(tmp_path, ours, theirs)) == [
        [(LARGE, 7 * LARGE)],
        [(8 * LARGE, 8 * LARGE)],
    ]


def test_pieces_that_lie_differently(tmp_path: Path) -> None:
    """What is equal stands at other offsets, and in small runs on one side."""
    small = {BASE + at: DATA[at : at + PAGE] for at in range(0, LARGE, 2 * PAGE)}
    found = bulk(family(tmp_path, {BASE: DATA}, {**small, BASE + LARGE: DATA[LARGE : 2 * LARGE]}))
    assert found == [[(2 * LARGE, 6 * LARGE)], []]


def test_three_generations(tmp_path: Path) -> None:
    """A parent keeps what any child shares, a child what it shares with either side."""
    middle = changed((0, LARGE))
    last = changed((0, LARGE), (LARGE, LARGE))
    assert bulk(family(tmp_path, {BASE: DATA}, {BASE: middle}, {BASE: last})) == [
        [(0, LARGE)],
        [],
        [(LARGE, LARGE)],
    ]


def test_equal_zeros_are_bulk(tmp_path: Path) -> None:
    """They are dropped, which takes less memory than to share them."""
    data = DATA[:LARGE] + bytes(LARGE) + DATA[2 * LARGE : 3 * LARGE]
    assert bulk(family(tmp_path, {BASE: data}, {BASE: data})) == [[(LARGE, LARGE)]] * 2
    nothing = bytes(3 * LARGE)
    assert bulk(family(tmp_path, {BASE: nothing}, {BASE: nothing})) == [[(0, 3 * LARGE)]] * 2


def test_equal_zeros_over_a_file_are_not(tmp_path: Path) -> None:
    nothing = bytes(LARGE)
    assert bulk(family(tmp_path, {BASE: nothing}, {BASE: nothing}, kind="file")) == [[], []]


def test_every_page_stays_in_one_run(tmp_path: Path) -> None:
    theirs = changed((PAGE, PAGE), (LARGE + PAGE, SMALL), (5 * LARGE, LARGE))
    folder = family(tmp_path, {BASE: DATA}, {BASE: theirs})
    before = survey(folder)
    after = compare(before, Pieces([folder]))
    for layout in (before, after):
        assert layout.runs == sorted(layout.runs, key=lambda run: (run.source, run.offset))
    for one, other in ((before, after), (after, before)):
        covered = {(r.source, r.offset + at) for r in one.runs for at in range(0, r.length, PAGE)}
        for run in other.runs:
            assert (run.source, run.offset) in covered
            assert bool(run.flags & ANONYMOUS)
    assert sum(run.length for run in before.runs) == sum(run.length for run in after.runs)


def test_pieces_of_threads_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = changed((LARGE, LARGE), (6 * LARGE, SMALL))
    folder = family(tmp_path, {BASE: DATA}, {BASE: theirs})
    whole = compare(survey(folder), Pieces([folder]))
    monkeypatch.setattr(sharing, "_PIECE", 3 * PAGE)
    assert compare(survey(folder), Pieces([folder])) == whole


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    folder = family(tmp_path, {BASE: DATA}, {BASE: DATA})
    layout = survey(folder)
    os.truncate(folder / "pages-2.img", 3 * LARGE)
    with pytest.raises(NotIndexable, match=r"pages-2\.img is cut off at "):
        compare(layout, Pieces([folder]))


def test_nothing_is_read_without_children(tmp_path: Path) -> None:
    folder = family(tmp_path, {BASE: DATA})
    layout = survey(folder)
    (folder / "pages-1.img").unlink()
    assert compare(layout, Pieces([folder])) == layout


def test_a_copy_that_is_not_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of it would be copied to the skeleton, to fill a little."""
    theirs = changed((LARGE, 2 * LARGE))
    folder = family(tmp_path, {BASE: DATA}, {BASE: theirs, BASE + 8 * LARGE: OTHER})
    assert bulk(folder) == [[(LARGE, 2 * LARGE)], [(LARGE, 2 * LARGE), (8 * LARGE, 8 * LARGE)]]
    monkeypatch.setattr(sharing, "_CHEAP", LARGE)
    assert bulk(folder) == [[], [(LARGE, 2 * LARGE), (8 * LARGE, 8 * LARGE)]]


def test_it_is_the_same_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is equal may lie in other pieces of the two; what must be copied anyway stays bulk."""
    monkeypatch.setattr(pieces, "PIECE", 3 * LARGE + PAGE)
    theirs = {BASE + PAGE: changed((LARGE, 2 * LARGE))[PAGE:], BASE + 8 * LARGE: OTHER}
    folder = family(tmp_path / "images", {BASE: DATA}, theirs)
    wanted = bulk(folder)
    layout = in_pieces(survey(folder))
    Pieces([tmp_path]).take(folder)
    for cheap in (LARGE, 64 << 20):
        monkeypatch.setattr(sharing, "_CHEAP", cheap)
        found = [run for run in compare(layout, Pieces([tmp_path])).runs if run.flags & BULK]
        assert {run.source for run in found} > {0}
        for task, ranges in enumerate(wanted):
            pages_ = {at for start, size in ranges for at in range(start, start + size, PAGE)}
            mine = [(r.address - BASE, r.length) for r in found if r.task == task]
            assert {at for a, size in mine for at in range(a, a + size, PAGE)} == pages_
