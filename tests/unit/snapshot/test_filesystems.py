"""CRIU mounts what an image says: nothing of the host's may be among it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fakes.creds import Dump, spec
from fakes.images import Images

from shim.errors import Damaged, Unfit
from shim.proto import criu_pb as pb
from shim.snapshot import filesystems, privileges

ROOT = pb.Mount(mnt_id=1, parent_mnt_id=99, mountpoint=b"/", fsname=b"overlay")
PROC = pb.Mount(mnt_id=2, parent_mnt_id=1, fstype=pb.FSTYPE_PROC, mountpoint=b"/proc")
BIND = pb.Mount(mnt_id=3, parent_mnt_id=1, mountpoint=b"/data", ext_key=b"/data")


def mount(**values: Any) -> pb.Mount:
    return pb.Mount(mnt_id=9, parent_mnt_id=1, mountpoint=b"/x", **values)


def found(folder: Path, *mounts: pb.Mount, live: dict[str, Any] | None = None) -> list[str]:
    Images(folder).put("mountpoints-12.img", filesystems._MAGIC, *mounts)
    return list(filesystems.foreign(folder, os.listdir(folder), live or {}))


def test_what_containers_have(tmp_path: Path) -> None:
    assert found(tmp_path, ROOT, PROC, BIND, mount(ext_mount=True)) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fstype": pb.FSTYPE_AUTO, "fsname": b"ext4", "source": b"/dev/sda1"}, "'ext4' at '/x'"),
        ({"fstype": pb.FSTYPE_BINFMT_MISC}, "'file system 4' at '/x'"),
        ({"fsname": b"\xff\n"}, "'\\ufffd\\n' at"),
        ({}, "'file system 0' at"),
    ],
)
def test_what_is_the_hosts(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    (said,) = found(tmp_path, ROOT, PROC, mount(**values))
    assert words in said


def test_what_the_spec_mounts_itself(tmp_path: Path) -> None:
    live = {"mounts": [{"destination": "/x", "type": "hugetlbfs"}]}
    huge = mount(fstype=pb.FSTYPE_AUTO, fsname=b"hugetlbfs")
    assert found(tmp_path, ROOT, huge, live=live) == []
    assert len(found(tmp_path, ROOT, huge)) == 1


def test_another_mount_namespace(tmp_path: Path) -> None:
    """Its root is CRIU's to make, of what the image says."""
    Images(tmp_path).put("mountpoints-13.img", filesystems._MAGIC, ROOT, PROC)
    assert found(tmp_path, ROOT, PROC, BIND) == []
    disk = pb.Mount(mnt_id=1, parent_mnt_id=99, mountpoint=b"/", fstype=pb.FSTYPE_OVERLAYFS)
    assert len(found(tmp_path, disk)) == 1
    (tmp_path / "mountpoints-13.img").unlink()
    assert found(tmp_path, disk) == []


def test_it_is_part_of_the_check(tmp_path: Path) -> None:
    images = Dump(tmp_path).write()
    disk = mount(fstype=pb.FSTYPE_AUTO, fsname=b"ext4")
    Images(images).put("mountpoints-12.img", filesystems._MAGIC, ROOT, PROC)
    privileges.check(images, spec())
    Images(images).put("mountpoints-12.img", filesystems._MAGIC, ROOT, disk)
    with pytest.raises(Unfit, match="CRIU would mount 'ext4'") as caught:
        privileges.check(images, spec())
    assert not isinstance(caught.value, Damaged)
    Images(images).put("mountpoints-12.img", filesystems._MAGIC, b"\xff")
    with pytest.raises(Damaged, match=r"mountpoints-12\.img"):
        privileges.check(images, spec())
