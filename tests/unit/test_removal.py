"""Folders go; what is mounted in them, linked from them or named like them does not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import removal
from shim.mount import mount_points
from shim.removal import remove_folder

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is not ours."""
    (tmp_path / "outside/inner").mkdir(parents=True)
    (tmp_path / "outside/file").touch()
    return tmp_path / "outside"


@pytest.fixture
def gone(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "gone/inner").mkdir(parents=True)
    (tmp_path / "gone/inner/file").touch()
    yield tmp_path / "gone"
    for point in reversed(mount_points(str(tmp_path))):
        subprocess.run(["umount", "-l", point], check=False)


def intact(outside: Path) -> bool:
    return (outside / "file").exists() and (outside / "inner").exists()


def test_with_what_is_in_it(gone: Path) -> None:
    remove_folder(str(gone))
    assert not gone.exists()
    remove_folder(str(gone))


def test_what_somebody_leaves_there_meanwhile(gone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CRIU does that was killed a moment ago."""
    rmdir = os.rmdir
    late = iter([gone / "log"])

    def remove(path: str) -> None:
        if path == str(gone):
            for file in late:
                file.touch()
        rmdir(path)

    monkeypatch.setattr(os, "rmdir", remove)
    remove_folder(str(gone))
    assert not gone.exists()


def test_what_never_gets_empty(gone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "_PAUSE", 0.0)
    monkeypatch.setattr(os, "unlink", lambda _path: None)
    with pytest.raises(OSError, match="Directory not empty"):
        remove_folder(str(gone))


def test_links_are_not_followed(gone: Path, outside: Path) -> None:
    (gone / "folder").symlink_to(outside)
    (gone / "file").symlink_to(outside / "file")
    remove_folder(str(gone))
    assert not gone.exists()
    assert intact(outside)


def test_a_link_in_its_place(gone: Path, outside: Path) -> None:
    (gone / "link").symlink_to(outside)
    remove_folder(str(gone / "link"))
    assert not (gone / "link").is_symlink()
    assert intact(outside)


@ROOT
def test_mounts_go_first(gone: Path, outside: Path) -> None:
    (gone / "mounted").mkdir()
    subprocess.run(["mount", "--bind", outside, gone / "mounted"], check=True)
    remove_folder(str(gone))
    assert not gone.exists()
    assert intact(outside)


@ROOT
def test_another_file_system_is_never_entered(gone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should an unmount not have helped."""
    (gone / "mounted").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", gone / "mounted"], check=True)
    (gone / "mounted/file").touch()
    monkeypatch.setattr(removal, "unmount_all", lambda path: None)
    with pytest.raises(OSError, match="something is still mounted there"):
        remove_folder(str(gone))
    assert (gone / "mounted/file").exists()
