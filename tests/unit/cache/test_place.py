"""The mount that the cache's memory is in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import mount
from shim.cache import holder, place
from shim.config import Config
from shim.mount import mount_points
from shim.proto.task_pb import Mount

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    made = place.folder_of(Config({"state": str(tmp_path / "state")}))
    try:
        place.make(made, 8 * MIB)
    except PermissionError:
        pytest.skip("nobody may mount anything here")
    yield made
    mount.unmount_all(str(made))


def size(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize


def test_it_is_its_own(folder: Path) -> None:
    assert mount_points(str(folder)) == [str(folder)]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert size(folder) >= 8 * MIB


def test_it_outlives_who_made_it(folder: Path) -> None:
    before = size(folder)
    (folder / "file").write_bytes(b"data")
    place.make(folder, 16 * MIB)
    assert mount_points(str(folder)) == [str(folder)]
    assert (folder / "file").read_bytes() == b"data"
    assert size(folder) == before + 8 * MIB
    place.fit(folder, 4 * MIB)
    assert size(folder) == before - 4 * MIB


def test_a_folder_behind_a_link(folder: Path) -> None:
    """As /var/run is: what is there is found, and nothing is mounted over it."""
    link = folder.parent.with_name("link")
    link.symlink_to(folder.parent)
    (folder / "file").write_bytes(b"data")
    place.make(link / folder.name, 16 * MIB)
    assert mount_points(str(folder)) == [str(folder)]
    assert (folder / "file").read_bytes() == b"data"


def test_it_is_as_large_as_what_is_in_it(folder: Path) -> None:
    with open(folder / "file", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 70 * MIB)
    place.make(folder, 2 * MIB)
    assert size(folder) >= 70 * MIB
    (folder / "file").unlink()
    place.fit(folder, 2 * MIB)
    assert size(folder) < 70 * MIB


def test_it_is_removed(folder: Path) -> None:
    place.remove(folder)
    place.remove(folder)
    assert not folder.exists()


def test_a_kernel_without_huge_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.remove(folder)
    real = mount.mount_all

    def refuse(mounts: list[Mount], where: str) -> None:
        if "huge=always" in mounts[0].options:
            raise OSError(22, "what?")
        real(mounts, where)

    monkeypatch.setattr(place, "mount_all", refuse)
    place.make(folder, 8 * MIB)
    assert mount_points(str(folder)) == [str(folder)]


def test_all_is_given_back_when_it_is_uninstalled(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is to be one again, and if it is asked for twice."""
    config = tmp_path / "config.toml"
    config.write_text(f'state = "{folder.parent}"\ncache.size = 1.0\n')
    monkeypatch.setattr(sys, "argv", ["holder", "--remove", "--config", str(config)])
    assert (holder.main(), folder.exists()) == (0, False)
    assert holder.main() == 0
    assert not mount_points(str(folder))
