"""The skeleton: what is left of pagemaps and pages when some are taken out."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fakes.images import BASE, Images, noise, pages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.snapshot import pagemap, pieces, skeleton
from shim.snapshot.images import PAGE, NotIndexable
from shim.snapshot.pieces import Piece, Pieces

SIZE = 700  # pages: three entries, the last one shorter


@pytest.fixture
def images(tmp_path: Path) -> Path:
    made = Images(tmp_path / "images")
    memory = {BASE: noise(SIZE * PAGE), BASE + 1024 * PAGE: noise(3 * PAGE, 2)}
    made.pagemap("pagemap-1.img", memory)
    (tmp_path / "folder").mkdir()
    return made.folder


def whole(found: pagemap.Pagemap) -> list[Piece]:
    return [Piece(found.pages, found.size, 0, 0)]


def written(images: Path, *removed: tuple[int, int]) -> Path:
    """A skeleton without ranges of pages."""
    found = pagemap.load(images, "pagemap-1.img")
    folder = images.parent / "folder"
    ranges = [(start * PAGE, end * PAGE) for start, end in removed]
    left = skeleton.write(found, whole(found), ranges, Pieces([images]), folder)
    assert left == os.stat(folder / found.pages).st_size
    return folder


def entries(folder: Path) -> list[tuple[int, int]]:
    found = pagemap.load(folder, "pagemap-1.img").entries
    return [((address - BASE) // PAGE, count) for address, count, _ in found]


def test_nothing_taken_out(images: Path) -> None:
    folder = written(images)
    for name in ("pagemap-1.img", "pages-1.img"):
        assert (folder / name).read_bytes() == (images / name).read_bytes()


def test_all_taken_out(images: Path) -> None:
    folder = written(images, (0, SIZE + 3))
    assert pages(folder, "pagemap-1.img") == {}
    assert (folder / "pages-1.img").read_bytes() == b""
    head = (images / "pagemap-1.img").read_bytes()[: 8 + 4 + 2]
    assert (folder / "pagemap-1.img").read_bytes() == head


def test_entries_are_cut_and_never_joined(images: Path) -> None:
    folder = written(images, (10, 20), (250, 260), (SIZE - 1, SIZE + 1))
    assert entries(folder) == [(0, 10), (20, 230), (260, 252), (512, 187), (1025, 2)]
    assert entries(written_anew(images, (256, 512))) == [(0, 256), (512, 188), (1024, 3)]


def written_anew(images: Path, *removed: tuple[int, int]) -> Path:
    for path in (images.parent / "folder").iterdir():
        path.unlink()
    return written(images, *removed)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(0, SIZE + 3), max_size=12, unique=True))
def test_what_is_left_is_what_was(images: Path, bounds: list[int]) -> None:
    places = sorted(bounds)
    removed = list(zip(places[0::2], places[1::2], strict=False))
    folder = written_anew(images, *removed)
    before = pages(images, "pagemap-1.img")
    gone = {n for start, end in removed for n in range(start, end)}
    assert pages(folder, "pagemap-1.img") == {
        address: page for n, (address, page) in enumerate(before.items()) if n not in gone
    }


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_out_of_pieces(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    removed = [(10, 20), (63, 65), (250, 260), (SIZE - 1, SIZE + 1)]
    wanted = (written(images, *removed) / "pages-1.img").read_bytes()
    monkeypatch.setattr(pieces, "PIECE", size * PAGE)
    found = pagemap.load(images, "pagemap-1.img")
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "left"]
    for folder in folders:
        folder.mkdir()
    spread = Pieces(folders[:2])
    spread.take(images)
    cut = pieces.cut([(found.pages, found.size)])
    ranges = [(start * PAGE, end * PAGE) for start, end in removed]
    assert skeleton.write(found, cut, ranges, spread, folders[2]) == len(wanted)
    assert (folders[2] / "pages-1.img").read_bytes() == wanted


def test_flags_and_form_stay(tmp_path: Path) -> None:
    made = Images(tmp_path / "images")
    made.pagemap("pagemap-1.img", {BASE: noise(9 * PAGE)}, flags=4, wide=False)
    (tmp_path / "folder").mkdir()
    found = pagemap.load(written(made.folder, (1, 4)), "pagemap-1.img")
    assert (found.entries, found.wide) == ([(BASE, 1, 4), (BASE + 4 * PAGE, 5, 4)], False)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_copy(
    images: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refused(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    wanted = pages(written(images, (10, 20)), "pagemap-1.img")
    monkeypatch.setattr(os, "copy_file_range", refused)
    assert pages(written_anew(images, (10, 20)), "pagemap-1.img") == wanted


def test_a_disk_that_is_full(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", refused)
    with pytest.raises(OSError, match="No space left"):
        written(images, (10, 20))


def test_a_file_that_is_cut_off(images: Path) -> None:
    found = pagemap.load(images, "pagemap-1.img")
    os.truncate(images / "pages-1.img", 5 * PAGE)
    folder = images.parent / "folder"
    with pytest.raises(NotIndexable, match=r"pages-1\.img is cut off"):
        skeleton.write(found, whole(found), [(10, 20)], Pieces([images]), folder)


def test_united() -> None:
    assert skeleton.united([]) == []
    assert skeleton.united([(8, 9), (1, 3), (3, 5), (2, 4), (6, 7)]) == [(1, 5), (6, 7), (8, 9)]
