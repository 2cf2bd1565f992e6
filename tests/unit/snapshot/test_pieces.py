"""Pages files in pieces: nothing of them is lost, and CRIU gets them whole again."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import Damaged
from shim.snapshot import pieces
from shim.snapshot.images import PAGE
from shim.snapshot.pieces import (
    Piece,
    Pieces,
    cut,
    dealt,
    gpu_number,
    gpu_pieces,
    link,
    name_of,
    open_source,
    parse,
)

SIZE = 4 * PAGE
FILES = {  # of CRIU's numbers, in another order than their names
    "pages-1.img": 10 * PAGE,
    "pages-2.img": 3 * PAGE,
    "pages-9.img": SIZE,
    "pages-10.img": 2 * SIZE,
    "pages-11.img": 0,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", SIZE)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "criu"
    folder.mkdir()
    for name, size in FILES.items():
        (folder / name).write_bytes(random.Random(name).randbytes(size))
    (folder / "inventory.img").write_bytes(b"small")
    (folder / "pages-x.img").write_bytes(b"something else")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    for folder in made:
        folder.mkdir()
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def test_names() -> None:
    assert name_of("pages-7.img", 12) == "pages-7.img.0012"
    assert parse("pages-7.img.0012") == ("pages-7.img", 12)
    for bad in ("pages-7.img", "pages-7.img.12", "pages-0.img.0000", "pages-7.img.00000", "x", ""):
        assert parse(bad) is None
    for bad in ("../pages-7.img.0000", "pages-7.img.0000\n", "pages-\u0667.img.0000"):
        assert parse(bad) is None


def test_cuts() -> None:
    assert cut([("a", 2 * SIZE + PAGE), ("b", 0), ("c", SIZE)]) == [
        Piece("a.0000", SIZE, 0, 0),
        Piece("a.0001", SIZE, 0, SIZE),
        Piece("a.0002", PAGE, 0, 2 * SIZE),
        Piece("c.0000", SIZE, 2, 0),
    ]


def test_too_many() -> None:
    assert len(cut([("a", SIZE * 10_000)])) == 10_000
    with pytest.raises(OSError, match="more than 10000 pieces"):
        cut([("a", SIZE * 10_000 + 1)])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_there_and_back(images: Path, folders: list[Path], tmp_path: Path, count: int) -> None:
    before = contents(images)
    made = Pieces(folders[:count])
    made.take(images)
    assert sorted(os.listdir(images)) == ["inventory.img", "pages-x.img"]
    sizes = [len(os.listdir(folder)) for folder in folders]
    assert sum(sizes) == 3 + 1 + 1 + 2
    assert max(sizes[:count]) - min(sizes[:count]) <= 1
    made.assemble(images, tmp_path / "again")
    del before["pages-11.img"]  # to CRIU one that is missing is empty
    assert contents(tmp_path / "again") == before
    real = [path.name for path in (tmp_path / "again").iterdir() if not path.is_symlink()]
    assert sorted(real) == ["pages-1.img", "pages-10.img"]


def test_a_file_of_one_piece_is_only_renamed(images: Path, folders: list[Path]) -> None:
    before = os.stat(images / "pages-2.img").st_ino
    Pieces(folders[:1]).take(images)
    assert os.stat(folders[0] / "pages-2.img.0000").st_ino == before


def test_on_another_disk(
    images: Path, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(images)

    def refused(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "rename", refused)
    monkeypatch.setattr(os, "copy_file_range", refused)
    made = Pieces(folders)
    made.take(images)
    assert sorted(os.listdir(images)) == ["inventory.img", "pages-x.img"]
    made.assemble(images, tmp_path / "again")
    assert contents(tmp_path / "again").items() <= before.items()


def test_holes_stay_holes(
    images: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    mib = 1 << 20
    monkeypatch.setattr(pieces, "PIECE", 4 * mib)
    os.truncate(images / "pages-1.img", 0)
    with open(images / "pages-1.img", "r+b") as file:
        file.seek(6 * mib)
        file.write(b"x" * mib)
        file.truncate(17 * mib)
    before = (images / "pages-1.img").read_bytes()
    made = Pieces(folders)
    made.take(images)
    parts = [made.path(f"pages-1.img.{n:04d}") for n in range(5)]
    assert b"".join(part.read_bytes() for part in parts) == before
    assert sum(part.stat().st_blocks for part in parts) * 512 < 2 * mib
    made.assemble(images, images.parent / "again")
    whole = images.parent / "again/pages-1.img"
    assert whole.read_bytes() == before
    assert whole.stat().st_blocks * 512 < 2 * mib


def test_a_piece_that_is_missing(images: Path, folders: list[Path], tmp_path: Path) -> None:
    made = Pieces(folders)
    made.take(images)
    made.path("pages-1.img.0001").unlink()
    assert made.path("pages-1.img.0001") == folders[0] / "pages-1.img.0001"
    with pytest.raises(Damaged, match=r"one/pages-1\.img\.0001 is missing"):
        made.assemble(images, tmp_path / "again")


def test_links_are_relative(tmp_path: Path) -> None:
    (tmp_path / "disk/store").mkdir(parents=True)
    (tmp_path / "disk/store/file").write_bytes(b"it")
    (tmp_path / "store").symlink_to("disk/store")
    (tmp_path / "work").mkdir()
    for _ in range(2):
        link([(tmp_path / "store/file", "other")], tmp_path / "work")
    assert os.readlink(tmp_path / "work/other") == "../disk/store/file"
    assert (tmp_path / "work/other").read_bytes() == b"it"


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), max_size=30), st.integers(1, 12))
def test_turns(items: list[tuple[int, int]], most: int) -> None:
    lengths, disks = [length for length, _ in items], [disk for _, disk in items]
    turns = list(dealt(lengths, disks, most))
    order = [number for turn in turns for number in range(len(items))[turn]]
    assert sorted(order) == list(range(len(items)))
    for disk in set(disks):
        assert [n for n in order if disks[n] == disk] == [
            n for n, d in enumerate(disks) if d == disk
        ]
    for turn in turns:
        assert len({disks[n] for n in range(len(items))[turn]}) == 1
        assert sum(lengths[turn]) <= most or turn.stop - turn.start == 1


def test_turns_are_those_of_all_disks() -> None:
    lengths, disks = [4] * 8, [0] * 4 + [1] * 4
    order = [n for turn in dealt(lengths, disks, 4) for n in range(8)[turn]]
    assert order == [0, 4, 1, 5, 2, 6, 3, 7]


def test_pieces_of_gpu_memory(tmp_path: Path, folders: list[Path]) -> None:
    """CRIU's images and they do not know of one another."""
    assert gpu_number("gpu-1.img.0007") == (1, 7)
    for bad in ("gpu-0.img.0000", "gpu-1.img", "gpu-1.img.00000", "pages-1.img.0000"):
        assert gpu_number(bad) is None
    assert parse("gpu-1.img.0007") is None
    pages = {"gpu-10.img.0000": 1, "pages-1.img.0000": 2, "gpu-2.img.0001": 3, "gpu-2.img.0000": 4}
    listed = [("gpu-2.img.0000", 4), ("gpu-2.img.0001", 3), ("gpu-10.img.0000", 1)]
    assert gpu_pieces(pages) == listed
    images = tmp_path / "taken"
    images.mkdir()
    for name, size in listed[:2]:
        (images / name).write_bytes(bytes(size))
    (images / "pages-1.img.0000").touch()
    found = Pieces(folders)
    found.take_gpu(images)
    assert found.found() == {}
    assert {name: path.parent for name, path in found.found_gpu().items()} == {
        "gpu-2.img.0000": folders[0],
        "gpu-2.img.0001": folders[1],
    }
    assert os.listdir(images) == ["pages-1.img.0000"]


def test_one_that_is_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "gpu-1.img.0000"
    path.write_bytes(bytes(5))
    os.close(open_source(path, 5))
    with pytest.raises(Damaged, match="has 5 bytes, it had 6"):
        open_source(path, 6)
    with pytest.raises(Damaged, match="cannot read"):
        open_source(tmp_path / "none", 5)
    with pytest.raises(Damaged):
        open_source(tmp_path, 5)
