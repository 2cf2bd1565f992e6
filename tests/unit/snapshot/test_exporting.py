"""Files that appear whole; what is in them is in tests/unit/cli/test_export.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.artifacts import made

from shim.errors import AlreadyExists
from shim.snapshot.exporting import new_file, write_images
from shim.snapshot.pieces import Pieces
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.store import Store


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """One with an image of a task in it."""
    return made(Store(tmp_path / "store"), "worker")


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder of somebody's, with images in it that are to be replaced, and a name like ours."""
    folder = tmp_path / "beside"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "old.img").write_text("old")
    (folder / ".images-mine").mkdir()
    return folder


def test_images_are_replaced(snapshot: Snapshot, beside: Path) -> None:
    write_images(snapshot, beside / "images", replace=True)
    assert sorted(os.listdir(beside)) == [".images-mine", "images"]
    assert "core-1.img" in os.listdir(beside / "images")
    assert not (beside / "images/old.img").exists()


def test_old_images_stay_until_there_are_new_ones(
    snapshot: Snapshot, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if target == beside / "images" and not (path / "old.img").exists():
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="Input/output"):
        write_images(snapshot, beside / "images", replace=True)
    assert sorted(os.listdir(beside)) == [".images-mine", "images"]
    assert (beside / "images/old.img").read_text() == "old"


def test_images_that_somebody_else_is_quicker_with(
    snapshot: Snapshot, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assemble = Pieces.assemble

    def late(self: Pieces, images: Path, target: Path) -> None:
        assemble(self, images, target)
        (beside / "new").mkdir()

    monkeypatch.setattr(Pieces, "assemble", late)
    with pytest.raises(AlreadyExists, match="new exists"):
        write_images(snapshot, beside / "new")
    assert sorted(os.listdir(beside)) == [".images-mine", "images", "new"]
    assert os.listdir(beside / "new") == []


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_that_fails_is_not_there(tmp_path: Path, replace: bool) -> None:
    path = tmp_path / "out"
    if replace:
        path.write_text("before")

    def fail() -> None:
        with new_file(path, replace) as writer:
            os.write(writer, b"half")
            assert not path.exists() or path.read_text() == "before"
            raise OSError(28, "no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert os.listdir(tmp_path) == (["out"] if replace else [])
    with new_file(path, replace) as writer:
        os.write(writer, b"whole")
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["out"]


def test_somebody_is_quicker(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def late() -> None:
        with new_file(path):
            path.write_text("theirs")

    with pytest.raises(AlreadyExists, match="out exists"):
        late()
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_is_no_file(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(AlreadyExists), new_file(tmp_path / "out", replace):
        pass
    assert os.listdir(tmp_path) == ["out"]
