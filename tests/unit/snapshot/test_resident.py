"""Adding up ranges, and address spaces."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.images import BASE, LARGE, Images, noise, vma
from hypothesis import given
from hypothesis import strategies as st

from shim.snapshot import images as criu
from shim.snapshot.images import PAGE, Memfds
from shim.snapshot.index import Index
from shim.snapshot.indexing import make
from shim.snapshot.resident import (
    NONE,
    PRIVATE,
    SHARED,
    Bytes,
    Contents,
    Space,
    Spans,
    contents,
    mapped,
)


@given(st.sets(st.integers(0, 40)), st.integers(0, 45), st.integers(0, 45))
def test_spans(units: set[int], start: int, end: int) -> None:
    """Against counting; neighbours stay apart, as pagemaps have them."""
    spans = Spans((unit, unit + 1) for unit in units)
    assert spans.total == len(units)
    assert spans.within(start, end) == len(units & set(range(start, end)))


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [(0, 100, 30), (10, 20, 10), (15, 20, 5), (0, 15, 5), (12, 14, 2), (20, 30, 0), (25, 45, 15)],
)
def test_long_spans(start: int, end: int, found: int) -> None:
    assert Spans([(30, 50), (10, 20)]).within(start, end) == found


def test_what_is_in_nothing_is_zero() -> None:
    here = Contents(resident=Spans([(0, 100)]), bulk=Spans([(0, 60)]), left=Spans([(60, 70)]))
    assert here.measured(0, 100, 200) == Bytes(200, 100, 60, 10, 30)
    assert Contents().measured(0, 10, 10) == Bytes(10, 0, 0, 0, 0)
    assert Bytes(1, 2, 3, 4, 5) + Bytes(1, 1, 1, 1, 1) == Bytes(2, 3, 4, 5, 6)
    assert NONE + NONE == NONE


def test_shared_memory_from_the_middle(tmp_path: Path) -> None:
    """Extents have addresses; in a shared object it is the offset that counts."""
    made = Images(tmp_path / "criu")
    data = noise(2 * LARGE)
    made.process(1, [vma(BASE, LARGE, "shared", shmid=3, pgoff=LARGE)], {})
    made.shared(3, {0: data})
    images = made.write()
    index = make(images, tmp_path / "index")
    processes = criu.processes(images)
    notes: list[str] = []
    found = contents(images, processes, index, notes)
    here = found[Space(SHARED, 3)]
    assert notes == []
    assert [(e.start, e.length) for e in here.extents] == [(LARGE, LARGE)]
    assert here.measured(0, 2 * LARGE, 0) == Bytes(0, 2 * LARGE, LARGE, LARGE, 0)
    seen = mapped(processes[0], processes[0].vmas[0], Memfds(images))
    assert seen == (Space(SHARED, 3), LARGE)


def test_what_has_no_extents_is_left_to_criu(tmp_path: Path) -> None:
    made = Images(tmp_path / "criu")
    made.process(1, [vma(BASE, LARGE)], {BASE: noise(LARGE)})
    made.process(2, [vma(BASE, LARGE)], {BASE: noise(PAGE)})
    images = made.write()
    index = make(images, tmp_path / "index")
    found = contents(images, criu.processes(images), index, [])
    assert found[Space(PRIVATE, 1)].bulk.total > 0
    assert found[Space(PRIVATE, 2)].left.total == PAGE


def test_pagemaps_that_cannot_be_read(tmp_path: Path) -> None:
    made = Images(tmp_path / "criu")
    made.process(1, [vma(BASE, LARGE)], {BASE: noise(LARGE)})
    images = made.write()
    index = make(images, tmp_path / "index")
    (images / "pagemap-1.img").write_bytes(b"")
    notes: list[str] = []
    assert contents(images, criu.processes(images), index, notes) == {}
    assert len(notes) == 1
    (images / "pagemap-x.img").touch()
    assert contents(images, criu.processes(images), index, notes) == {}
    assert "pagemap-x.img is a pagemap of nobody" in notes


def test_a_skeleton_that_cannot_be_read(tmp_path: Path) -> None:
    made = Images(tmp_path / "criu")
    made.process(1, [vma(BASE, LARGE)], {BASE: noise(LARGE)})
    images = made.write()
    index: Index = make(images, tmp_path / "index")
    (tmp_path / "index" / "pagemap-1.img").write_bytes(b"")
    notes: list[str] = []
    found = contents(images, criu.processes(images), index, notes)
    assert found[Space(PRIVATE, 1)].resident.total == LARGE
    assert len(notes) == 1
