"""Extended attributes: what is packed, what is laid, and what is refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from fakes.archives import END, extended, header, lay, member, record, take_back, write

from shim.errors import CheckpointFailed, Unfit
from shim.snapshot.archive import pack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="such attributes need root")

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service
# Version, then tag, permissions and id of each entry: linux/posix_acl_xattr.h
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 6, -1 % (1 << 32)), (2, 4, 42), (4, 4, -1 % (1 << 32)),
                  (16, 4, -1 % (1 << 32)), (32, 4, -1 % (1 << 32)))
)  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


# Which are set in a difference, and which in a volume too
XATTRS = [
    ("user.a", True, True),
    ("system.posix_acl_access", True, True),
    ("security.capability", True, False),
    ("trusted.overlay.opaque", True, None),
    ("trusted.overlay.whiteout", True, None),
    ("trusted.overlay.origin", False, False),
    ("trusted.overlay.impure", False, False),
    ("trusted.overlay.nlink", False, False),
    ("trusted.overlay.redirect", None, None),
    ("trusted.overlay.metacopy", None, None),
    ("trusted.overlay.overlay.opaque", None, None),
    ("trusted.overlay.", None, None),
    ("trusted.note", False, False),
    ("security.selinux", False, False),
    ("security.ima", False, False),
    ("nonsense", False, False),
]


@pytest.mark.parametrize(("name", "difference", "volume"), XATTRS)
def test_extended_attributes(
    tmp_path: Path, target: Path, name: str, difference: bool | None, volume: bool | None
) -> None:
    """None: the archive is refused, since it would come back as something else."""
    value = {"system.posix_acl_access": ACL, "security.capability": CAPABILITY}.get(name)
    pairs = record(b"SCHILY.xattr." + name.encode(), value or b"y")
    archive = write(tmp_path, extended(pairs), member(b"x", b"data"), END)
    for whiteouts, wanted in ((True, difference), (False, volume)):
        if wanted is None:
            with pytest.raises(Unfit, match=r"'x' (has its content elsewhere|hides what)"):
                lay(archive, target, whiteouts=whiteouts)
            assert os.listdir(target) == [], "found out before anything is touched"
            continue
        lay(archive, target, whiteouts=whiteouts)
        found = [one for one in os.listxattr(target / "x") if one != "security.selinux"]
        assert found == ([name] if wanted else [])
        take_back(archive, target)


def test_a_root_that_leads_elsewhere(tmp_path: Path, target: Path) -> None:
    pairs = record(b"SCHILY.xattr.trusted.overlay.redirect", b"/etc")
    with pytest.raises(Unfit, match="has its content elsewhere"):
        lay(write(tmp_path, extended(pairs), header(b"./", b"5"), END), target, whiteouts=True)


def test_a_folder_that_was_renamed_is_not_packed(source: Path, tmp_path: Path) -> None:
    """By an overlay with redirect_dir: most of what is in it is in the image, by another name."""
    (source / "renamed").mkdir()
    os.setxattr(source / "renamed", "trusted.overlay.redirect", b"before")
    with pytest.raises(CheckpointFailed, match="'renamed' has its content elsewhere"):
        pack(source, tmp_path / "a.tar")
    assert os.listdir(tmp_path) == ["source"]


def test_what_is_not_laid_is_not_packed(source: Path, tmp_path: Path) -> None:
    (source / "file").touch()
    os.setxattr(source / "file", "trusted.note", b"secret")
    os.setxattr(source / "file", "trusted.overlay.origin", b"secret")
    os.setxattr(source / "file", "user.note", b"told")
    pack(source, tmp_path / "a.tar")
    packed = (tmp_path / "a.tar.0000").read_bytes()
    assert (b"told" in packed, b"secret" in packed) == (True, False)
