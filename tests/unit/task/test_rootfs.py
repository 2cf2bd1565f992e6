from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.mount import mount_points
from shim.proto.task_pb import Mount
from shim.task.rootfs import Rootfs


def test_without_mounts_the_folder_is_used_as_it_is(tmp_path: Path) -> None:
    rootfs = Rootfs(str(tmp_path / "missing"), [])
    rootfs.mount()
    rootfs.unmount()
    assert rootfs.as_list() == []


def test_as_plain_data() -> None:
    mounts = [Mount(type="overlay", source="overlay", options=["upperdir=/u", "lowerdir=/l"])]
    assert Rootfs("/x", mounts).as_list() == [
        {
            "type": "overlay",
            "source": "overlay",
            "target": "",
            "options": ["upperdir=/u", "lowerdir=/l"],
        }
    ]
    assert [Mount(**m) for m in Rootfs("/x", mounts).as_list()] == mounts  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_mounted_and_unmounted(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").touch()
    (tmp_path / "rootfs").mkdir()
    mount = Mount(type="bind", source=str(tmp_path / "source"), options=["rbind", "ro"])
    rootfs = Rootfs(str(tmp_path / "rootfs"), [mount])
    rootfs.mount()
    try:
        assert (tmp_path / "rootfs/file").exists()
    finally:
        rootfs.unmount()
    rootfs.unmount()
    assert mount_points(str(tmp_path)) == []
