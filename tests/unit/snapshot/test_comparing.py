"""Two snapshots side by side, page by page and file by file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.images import BASE, LARGE, Images, Memory, noise, vma
from fakes.snapshots import tar_of
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.errors import Damaged
from shim.snapshot import comparing, pieces
from shim.snapshot.archive import Archive, pack
from shim.snapshot.comparing import Change, Difference, Pages, Side
from shim.snapshot.images import PAGE
from shim.snapshot.indexing import make
from shim.snapshot.inspection import look
from shim.snapshot.pagemap import Piece
from shim.snapshot.pieces import Pieces

A, B = noise(PAGE, 1), noise(PAGE, 2)


def compared(tmp_path: Path, first: Images, second: Images) -> list[Difference]:
    sides = []
    for images in (first, second):
        folder = images.write()
        sides.append(Side(look(folder), Pages([folder])))
    with sides[0].pages, sides[1].pages:
        return comparing.memory(sides[0], sides[1])


def images(folder: Path, memory: Memory, *vmas: Any) -> Images:
    made = Images(folder)
    made.process(1, vmas or [vma(BASE, 16 * PAGE)], memory)
    return made


def test_pages_of_all_sorts(tmp_path: Path) -> None:
    first = images(tmp_path / "a", {BASE: A + A, BASE + 4 * PAGE: A, BASE + 8 * PAGE: A})
    second = images(tmp_path / "b", {BASE: A + B + B, BASE + 8 * PAGE: A})
    (found,) = compared(tmp_path, first, second)
    assert found.bytes == {
        "equal": 2 * PAGE, "different": PAGE, "first": PAGE, "second": PAGE
    }  # fmt: skip
    assert found.differs
    assert (found.process, found.kind) == ("1 ", "anonymous")


def test_mappings_of_one_of_them(tmp_path: Path) -> None:
    first = images(tmp_path / "a", {BASE: A}, vma(BASE, PAGE), vma(BASE + PAGE, PAGE))
    second = images(tmp_path / "b", {BASE + 2 * PAGE: A}, vma(BASE + 2 * PAGE, PAGE, "heap"))
    found = {d.kind: d.bytes for d in compared(tmp_path, first, second) if d.differs}
    assert found["anonymous"]["first"] == PAGE
    assert found["heap"]["second"] == PAGE


def test_a_mapping_that_has_grown(tmp_path: Path) -> None:
    first = images(tmp_path / "a", {BASE: A}, vma(BASE, PAGE, "heap"))
    second = images(tmp_path / "b", {BASE: A + B}, vma(BASE, 2 * PAGE, "heap"))
    (found,) = compared(tmp_path, first, second)
    assert found.kind == "heap"
    assert (found.bytes["equal"], found.bytes["second"]) == (PAGE, PAGE)


def test_processes_of_one_of_them(tmp_path: Path) -> None:
    first, second = images(tmp_path / "a", {BASE: A}), images(tmp_path / "b", {BASE: A})
    second.process(2, [vma(BASE, PAGE)], {BASE: A}, parent=1)
    one, two = compared(tmp_path, first, second)
    assert not one.differs
    assert (two.process, two.bytes["second"]) == ("2 ", PAGE)


def test_shared_memory_by_where_it_is_mapped(tmp_path: Path) -> None:
    """CRIU numbers shared objects anew each time."""
    made = []
    for name, shmid, data in (("a", 3, A + A), ("b", 8, A + B)):
        one = Images(tmp_path / name)
        one.process(1, [vma(BASE, 2 * PAGE, "shared", shmid=shmid)], {})
        one.shared(shmid, {0: data})
        made.append(one)
    (found,) = compared(tmp_path, *made)
    assert (found.kind, found.bytes["equal"], found.bytes["different"]) == ("shared", PAGE, PAGE)


def test_equal_checksums_are_believed(tmp_path: Path) -> None:
    """What the extents say is equal is not read: here the bytes are not there any more."""
    sides = []
    told: list[int] = []
    for name in ("a", "b"):
        folder = images(tmp_path / name, {BASE: noise(LARGE)}, vma(BASE, LARGE)).write()
        make(folder, tmp_path / f"index-{name}")
        found = look(folder, tmp_path / f"index-{name}")
        with open(folder / "pages-1.img", "r+b") as file:
            file.seek(PAGE)  # the first page stays with CRIU
            file.write(bytes(LARGE - PAGE))
        sides.append(Side(found, Pages([folder])))
    with sides[0].pages, sides[1].pages:
        (difference,) = comparing.memory(sides[0], sides[1], told.append)
    assert not difference.differs
    assert sum(told) == LARGE == comparing.bytes_in_both(sides[0].found, sides[1].found)


def test_pages_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 2 * PAGE)
    monkeypatch.setattr(comparing, "PIECE", 2 * PAGE)
    folder, disks = tmp_path / "criu", [tmp_path / "one", tmp_path / "two"]
    data = noise(5 * PAGE)
    for path in (folder, *disks):
        path.mkdir()
    (folder / "pages-1.img").write_bytes(data)
    Pieces(disks).take(folder)
    assert len(os.listdir(disks[0])) == 2
    with Pages(disks) as found:
        assert found.read("pages-1.img", 0, 5 * PAGE) == data
        assert found.read("pages-1.img", PAGE, 3 * PAGE) == data[PAGE : 4 * PAGE]
        with pytest.raises(Damaged, match=r"pages-1\.img\.0002 ends"):
            found.read("pages-1.img", 4 * PAGE, 2 * PAGE)
        with pytest.raises(Damaged, match=r"pages-2\.img"):
            found.read("pages-2.img", 0, PAGE)


@settings(deadline=None)
@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_stretches(ours: set[int], theirs: set[int], same: set[int]) -> None:
    """Every page once, in order, and each with its place in both files."""

    def runs(pages: set[int]) -> list[Piece]:
        return [(page, offset, 1) for offset, page in enumerate(sorted(pages))]

    seen = {}
    for start, end, here, there in comparing._both(runs(ours), runs(theirs)):
        for n in range(end - start):
            assert start + n not in seen
            seen[start + n] = (
                None if here is None else here + n,
                None if there is None else there + n,
            )
    index = [{page: n for n, page in enumerate(sorted(pages))} for pages in (ours, theirs)]
    wanted = {page: (index[0].get(page), index[1].get(page)) for page in ours | theirs}
    assert {page: both for page, both in seen.items() if both != (None, None)} == wanted
    ranges = [(page, page + 1) for page in sorted(same)]
    cut = list(comparing._cut(3, 20, ranges, [start for start, _ in ranges]))
    assert [low for low, _, _ in cut] == [3, *(high for _, high, _ in cut[:-1])]
    assert cut[-1][1] == 20
    assert {p for low, high, equal in cut if equal for p in range(low, high)} == (
        same & set(range(3, 20))
    )


def archive(folder: Path, fill: Callable[[Path], object]) -> Archive:
    source = folder / "source"
    source.mkdir(parents=True)
    fill(source)
    pack(source, folder / "made.tar")
    return Archive(folder / "made.tar")


def test_files(tmp_path: Path) -> None:
    def first(folder: Path) -> None:
        for name in ("same", "gone", "longer", "other", "mode"):
            (folder / name).write_text(name)
        (folder / "link").symlink_to("a")
        (folder / "kind").mkdir()

    def second(folder: Path) -> None:
        for name, text in (
            ("same", "same"),
            ("new", ""),
            ("longer", "longest"),
            ("other", "OTHER"),
        ):
            (folder / name).write_text(text)
        (folder / "mode").write_text("mode")
        (folder / "mode").chmod(0o4755)
        (folder / "link").symlink_to("b")
        (folder / "kind").write_text("")

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    umask = os.umask(0o022)
    found = comparing.archives(archive(tmp_path / "a", first), archive(tmp_path / "b", second))
    os.umask(umask)
    assert found == [
        Change("gone", "removed", ""),
        Change("kind", "changed", "folder → file"),
        Change("link", "changed", "target a → b"),
        Change("longer", "changed", "size 6 → 7"),
        Change("mode", "changed", "mode 0644 → 4755"),
        Change("new", "added", ""),
        Change("other", "changed", "contents"),
    ]
    assert comparing.listed(found) == {"added": 1, "removed": 1, "changed": 5}


def test_holes(tmp_path: Path) -> None:
    def sparse(data: bytes) -> Callable[[Path], None]:
        def fill(folder: Path) -> None:
            with open(folder / "file", "wb") as file:
                file.truncate(1 << 20)
                file.seek(1 << 19)
                file.write(data)

        return fill

    made = [archive(tmp_path / str(n), sparse(data)) for n, data in enumerate((A, A, B))]
    assert comparing.archives(made[0], made[1]) == []
    assert comparing.archives(made[0], made[2]) == [Change("file", "changed", "contents")]


def test_no_archive(tmp_path: Path) -> None:
    base = tmp_path / "x.tar"
    (tmp_path / "x.tar.0000").write_bytes(tar_of({"a": b"1"}))
    assert comparing.archives(None, Archive(base)) == [Change("a", "added", "")]
    assert comparing.archives(Archive(base), None) == [Change("a", "removed", "")]
    (tmp_path / "x.tar.0000").write_bytes(b"x" * 2000)
    with pytest.raises(Damaged):
        comparing.archives(None, Archive(base))
