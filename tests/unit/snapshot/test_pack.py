"""One file instead of a folder, and back."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from shim.errors import CheckpointFailed, Damaged, Unfit
from shim.snapshot import archive
from shim.snapshot.pack import FOLDER, PACK, pack, unpacked


def test_what_is_packed_comes_back(tmp_path: Path) -> None:
    volume = tmp_path / FOLDER / "volumes/0"
    volume.mkdir(parents=True)
    (volume / "file").write_bytes(b"content")
    os.chmod(volume / "file", 0o640)
    (volume / "link").symlink_to("file")
    with open(volume / "sparse", "wb") as file:
        file.truncate(1 << 24)
    pack(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PACK]
    assert (tmp_path / PACK).stat().st_size < 1 << 20
    folder = unpacked(tmp_path)
    assert folder == tmp_path / FOLDER
    assert (volume / "file").read_bytes() == b"content"
    assert (volume / "file").stat().st_mode & 0o777 == 0o640
    assert os.readlink(volume / "link") == "file"
    assert (volume / "sparse").stat().st_size == 1 << 24
    assert unpacked(tmp_path) == folder  # again is harmless: undo comes after restore
    assert {path.name for path in tmp_path.iterdir()} == {PACK, FOLDER}


def test_runcs_own_images_have_nothing_of_ours(tmp_path: Path) -> None:
    assert unpacked(tmp_path) is None


def test_a_truncated_file_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / PACK).write_bytes(b"no archive")
    with pytest.raises(Damaged, match=r"thaw\.tar: cut off"):
        unpacked(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PACK]


def test_a_file_that_leads_elsewhere(tmp_path: Path) -> None:
    """Whoever hands a checkpoint over may have written it."""
    with tarfile.open(tmp_path / PACK, "w") as made:
        made.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(Unfit, match="bad name"):
        unpacked(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PACK]


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FOLDER).mkdir()

    def full(_reader: int, path: Path) -> None:
        path.write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "save", full)
    with pytest.raises(CheckpointFailed, match="No space left"):
        pack(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
