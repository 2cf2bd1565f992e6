"""Making an index: nothing of the memory is lost, and CRIU's images stay as they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.images import BASE, LARGE, Images, Memory, all_pages, filled, noise, pages, single, vma
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.snapshot import indexing, sharing
from shim.snapshot import pieces as pieces_
from shim.snapshot.images import PAGE
from shim.snapshot.index import DOCUMENT, EXTENTS, Index
from shim.snapshot.indexing import compare, make, scan, survey, write
from shim.snapshot.layout import BULK, COMPARED, Layout
from shim.snapshot.pieces import Pieces

ZERO = bytes(PAGE)
MIB = 1 << 20
EXTENT = 4 << 20


def restored(index: Index, links: Path) -> dict[int, Memory]:
    """The private memory that each process has in the end: by pid, by address."""
    index.link(links)
    memory: dict[int, Memory] = {}
    for name, left in all_pages(links).items():
        if "shmem" not in name:
            memory[int(name[8:-4])] = left
    for pid, address, flags, page in filled(index):
        assert address not in memory[pid], "either CRIU restores a page, or we do"
        if page != ZERO or not flags:
            memory[pid][address] = page
    shutil.rmtree(links)
    return memory


def original(images: Path) -> dict[int, Memory]:
    found = all_pages(images)
    return {int(name[8:-4]): left for name, left in found.items() if "shmem" not in name}


def without_zeros(memory: dict[int, Memory]) -> dict[int, Memory]:
    return {
        pid: {address: page for address, page in of_pid.items() if page != ZERO}
        for pid, of_pid in memory.items()
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A parent and its child, some of whose memory is shared, some zero, some in a memfd."""
    images = Images(tmp_path / "images")
    same, own = noise(4 * LARGE), noise(4 * LARGE, 2)
    vmas = [
        vma(BASE, MIB),
        vma(BASE + MIB, MIB, "file", shmid=3),
        vma(BASE + 2 * MIB, MIB, prot=1),
        vma(BASE + 4 * MIB, MIB, "memfd", shmid=40),
    ]
    for pid, mine in ((1, same), (2, own)):
        memory = {
            BASE: same + mine[: 2 * LARGE] + bytes(LARGE),
            BASE + MIB: noise(LARGE, pid) + bytes(LARGE),
            BASE + 2 * MIB: noise(LARGE),
        }
        images.process(pid, vmas, memory, parent=pid - 1, rseq={pid: BASE + MIB + 64})
    images.memfd(40, 77, {0: noise(LARGE), LARGE: bytes(LARGE)})
    return images.write()


def test_no_page_is_lost(two: Path, tmp_path: Path) -> None:
    before = contents(two)
    index = make(two, tmp_path / "index")
    assert contents(two) == before
    memory = restored(index, tmp_path / "links")
    shared = {BASE + 4 * MIB + at: page for at, page in pages(two, "pagemap-shmem-77.img").items()}
    for address, page in shared.items():
        assert memory[1].pop(address) == page
    assert without_zeros(memory) == without_zeros(original(two))
    over_the_file = range(BASE + MIB + LARGE, BASE + MIB + 2 * LARGE, PAGE)
    assert all(memory[pid][at] == ZERO for pid in (1, 2) for at in over_the_file), (
        "zeros over a file are no holes"
    )
    assert index.sizes == {
        "extents": 2 * (2 * LARGE + LARGE - PAGE) + 2 * LARGE,
        "zero": 2 * LARGE,
        "skeleton": 2 * (4 * LARGE + PAGE + LARGE + LARGE),
    }


def test_nothing_is_copied_that_is_filled(two: Path, tmp_path: Path) -> None:
    index = make(two, tmp_path / "index")
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "index").glob("pages-*.img")}
    assert sum(sizes.values()) == index.sizes["skeleton"]
    assert sizes["pages-3.img"] == 0, "of shared memory nothing need be left"
    assert pages(tmp_path / "index", "pagemap-shmem-77.img") == {}


def test_the_same_every_time(two: Path, tmp_path: Path) -> None:
    make(two, tmp_path / "one", threads=1)
    make(two, tmp_path / "two", threads=4)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_index_is_replaced(two: Path, tmp_path: Path) -> None:
    make(two, tmp_path / "index")
    wanted = contents(tmp_path / "index")
    (tmp_path / "index" / "pages-1.img").write_bytes(b"old")
    (tmp_path / "index" / "pages-9.img").write_bytes(b"of something else")
    make(two, tmp_path / "index")
    assert contents(tmp_path / "index") == wanted
    assert sorted(os.listdir(tmp_path)) == ["images", "index"]


def test_an_index_beside_the_images(two: Path, tmp_path: Path) -> None:
    """As of a folder of CRIU's alone: it is no part of the images."""
    first = make(two, two / "index")
    names = contents(two / "index")
    assert make(two, two / "index").sizes == first.sizes
    assert contents(two / "index") == names
    first.check_files()


class OnPurpose(Exception):
    pass


@pytest.mark.parametrize("name", ["scan", "write", "check_sizes"])
def test_what_fails_leaves_what_was(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make(two, tmp_path / "index")
    before = contents(tmp_path / "index")

    def fails(*_: object) -> None:
        raise OnPurpose

    monkeypatch.setattr(indexing, name, fails)
    with pytest.raises(OnPurpose):
        make(two, tmp_path / "index")
    assert contents(tmp_path / "index") == before
    assert sorted(os.listdir(tmp_path)) == ["images", "index"]


def cut(images: Path) -> None:
    os.truncate(images / "pages-1.img", PAGE)


def lengthen(images: Path) -> None:
    os.truncate(images / "pages-1.img", 64 << 20)


def drop(images: Path) -> None:
    (images / "pages-2.img").unlink()


def link(images: Path) -> None:
    drop(images)
    (images / "pages-2.img").symlink_to("pages-1.img")


def incremental(images: Path) -> None:
    (images / "parent").symlink_to("/nowhere")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "pages-1.img has 4096 bytes, not "),
        (lengthen, "pages-1.img has 67108864 bytes, not "),
        (drop, "pages-2.img is missing"),
        (link, "pages-2.img has 11 bytes, not "),
        (incremental, "the images need those of a parent"),
    ],
)
def test_what_cannot_be_indexed_says_why(
    two: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(two)
    index = make(two, tmp_path / "index")
    assert index.reason.startswith(words)
    assert index.count == 0
    assert sorted(os.listdir(tmp_path / "index")) == [EXTENTS, DOCUMENT]
    assert make(two, tmp_path / "index").reason == index.reason


def cut_and_go_on(layout: Layout, pages: Pieces) -> Layout:
    cut(pages.folders[0])
    return layout


def test_a_file_that_shrinks_meanwhile(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then there is no index, and no half of one: the files are read once more than looked at."""
    monkeypatch.setattr(indexing, "compare", cut_and_go_on)
    with pytest.raises(OSError, match=r"pages-1\.img"):
        make(two, tmp_path / "index")
    assert os.listdir(tmp_path) == ["images"]


def test_no_bulk_at_all(tmp_path: Path) -> None:
    """An index all the same: nothing to fill, nothing to copy."""
    single(tmp_path / "images", {BASE: noise(3 * PAGE)})
    index = make(tmp_path / "images", tmp_path / "index")
    assert (index.reason, index.count, index.tasks, index.sources) == ("", 0, [], [])
    assert index.sizes == {"extents": 0, "zero": 0, "skeleton": 3 * PAGE}
    index.check_files()
    assert restored(index, tmp_path / "links") == original(tmp_path / "images")


def test_nothing_but_zeros(tmp_path: Path) -> None:
    """One page stays, for CRIU to find an entry."""
    single(tmp_path / "images", {BASE: bytes(2 * LARGE)})
    index = make(tmp_path / "images", tmp_path / "index")
    assert (index.reason, index.count) == ("", 0)
    assert index.sizes == {"extents": 0, "zero": 2 * LARGE - PAGE, "skeleton": PAGE}
    assert restored(index, tmp_path / "links") == {1: {BASE: ZERO}}


def test_extents_are_cut_for_many_hands(tmp_path: Path) -> None:
    single(tmp_path / "images", {BASE - PAGE: noise(PAGE), BASE: noise(2 * EXTENT + LARGE)})
    index = make(tmp_path / "images", tmp_path / "index")
    assert index.count == 3
    assert index.bytes == 2 * EXTENT + LARGE
    assert without_zeros(restored(index, tmp_path / "links")) == original(tmp_path / "images")


def test_in_parts_as_a_checkpoint_does_it(two: Path, tmp_path: Path) -> None:
    """What is not to be compared is scanned before, the rest when the files are there."""
    whole = make(two, tmp_path / "whole")
    layout = survey(two)
    first = [run for run in layout.runs if run.flags & BULK and not run.flags & COMPARED]
    extents = scan(replace(layout, runs=first), Pieces([two]))
    settled = compare(layout, Pieces([two]))
    rest = [run for run in settled.runs if run.flags & BULK and run not in set(first)]
    extents += scan(replace(settled, runs=rest), Pieces([two]))
    records = [extents[at : at + 32] for at in range(0, len(extents), 32)]
    records.sort(key=lambda record: (record[28:30][::-1], record[8:16][::-1]))
    (tmp_path / "parts").mkdir()
    write(settled, b"".join(records), two, Pieces([two]), tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert whole.count == len(records)


def test_extents_of_a_file_that_was_given_up(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = survey(two)
    first = [run for run in layout.runs if run.flags & BULK and not run.flags & COMPARED]
    extents = scan(replace(layout, runs=first), Pieces([two]))
    monkeypatch.setattr(sharing, "_CHEAP", 0)
    settled = compare(layout, Pieces([two]))
    assert {run.source for run in settled.runs if run.flags & BULK} == {2}
    (tmp_path / "index").mkdir()
    write(settled, extents, two, Pieces([two]), tmp_path / "index")
    index = Index.open(tmp_path / "index", two)
    assert [blob.name for blob in index.sources] == ["pages-3.img"]
    assert index.sizes["skeleton"] == sum(blob.size for blob in layout.sources[:2])
    assert not (tmp_path / "index" / "pages-1.img").exists()
    index.check_files()


def test_pages_of_every_kind_stay_with_criu(tmp_path: Path) -> None:
    """Read-only, executable, stack, locked, huge, unknown: only plain memory is filled."""
    kinds = [
        vma(BASE, LARGE),
        vma(BASE + MIB, LARGE, prot=1),
        vma(BASE + 2 * MIB, LARGE, prot=7),
        vma(BASE + 3 * MIB, LARGE, flags=0x122),
        vma(BASE + 4 * MIB, LARGE, flags=0x2022),
        vma(BASE + 5 * MIB, LARGE, flags=0x40022),
        vma(BASE + 6 * MIB, LARGE, status=0x201 | 1 << 22),
        vma(BASE + 7 * MIB, LARGE, prot=0),
    ]
    single(tmp_path / "images", {v.start: noise(LARGE) for v in kinds}, *kinds)
    index = make(tmp_path / "images", tmp_path / "index")
    assert index.ranges == [[(BASE, BASE + LARGE)]]
    assert restored(index, tmp_path / "links") == original(tmp_path / "images")


def memories() -> st.SearchStrategy[list[tuple[int, int, int]]]:
    """Pieces: pages before it, its pages, what is in it (0: zeros, 1: the same, 2: its own)."""
    piece = st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(0, 2))
    return st.lists(piece, max_size=12)


def placed(pieces: list[tuple[int, int, int]], pid: int) -> Memory:
    memory: Memory = {}
    place = BASE
    for gap, count, what in pieces:
        place += gap * PAGE
        for at in range(place, place + count * PAGE, PAGE):
            memory[at] = ZERO if what == 0 else noise(PAGE, at + (pid if what == 2 else 0))
        place += count * PAGE
    return memory


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=60,
)
@given(memories(), memories(), st.sampled_from(["private", "file"]), st.sampled_from([0, 1, 5, 33]))
def test_any_memory_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    ours: list[tuple[int, int, int]],
    theirs: list[tuple[int, int, int]],
    kind: str,
    size: int,
) -> None:
    """`size`: pages of a piece; 0 without pieces."""
    folder = tmp_path_factory.mktemp("any")
    images = Images(folder / "images")
    for pid, pieces in ((1, ours), (2, theirs)):
        memory = placed(pieces, pid)
        images.process(pid, [vma(BASE, 8 * MIB, kind)], memory, parent=pid - 1)
    images.write()
    before = original(folder / "images")
    with pytest.MonkeyPatch.context() as patched:
        folders = None
        if size:
            patched.setattr(pieces_, "PIECE", size * PAGE)
            folders = [folder / "one", folder / "two"]
            for path in folders:
                path.mkdir()
            Pieces(folders).take(folder / "images")
        index = make(folder / "images", folder / "index", pages=folders)
    assert index.reason == ""
    assert Index.open(folder / "index", folder / "images", folders).extents == index.extents
    index.check_files()
    after = restored(index, folder / "links")
    if kind == "file":
        assert after == before
    assert without_zeros(after) == without_zeros(before)
    index.link(folder / "links")
    for pid, was in before.items():
        left = pages(folder / "links", f"pagemap-{pid}.img")
        assert left or not was, "CRIU finds an entry"
        other = before[3 - pid]
        shared = {at for at, page in was.items() if page == other.get(at) and page != ZERO}
        assert shared <= left.keys(), "what is shared stays with CRIU"


def spoilt(images: Path) -> Iterator[Path]:
    yield from sorted(p for p in images.iterdir() if not p.name.startswith("pages-"))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200
)
@given(st.data())
def test_whatever_the_bytes_of_the_images_are(two: Path, data: st.DataObject) -> None:
    """There is an index that says why not, or one that opens and loses nothing that was there."""
    path = data.draw(st.sampled_from(list(spoilt(two))))
    good = path.read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(bad) - 1))
        bad[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    path.write_bytes(bad)
    folder = two.parent / "index"
    try:
        index = make(two, folder)
        if not index.reason:
            assert Index.open(folder, two).count == index.count
            index.check_files()
    finally:
        path.write_bytes(good)
        shutil.rmtree(folder, ignore_errors=True)
