"""What a worker has outside its memory: which volumes, which connections, and exact copies."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.work import make_work

from shim.checkpoint import contents
from shim.checkpoint.contents import (
    Contents,
    Volume,
    copy_upper,
    established,
    refuse_devices,
    save_difference,
    save_volumes,
    survey,
    tmpfs_volumes,
)
from shim.errors import CheckpointFailed, FailedPrecondition
from shim.snapshot.config import Connections

root = pytest.mark.skipif(os.geteuid() != 0, reason="devices and trusted attributes need root")


@pytest.fixture
def shm() -> Iterator[Path]:
    """A folder on a tmpfs."""
    folder = Path(f"/dev/shm/thaw-test-{os.getpid()}")
    folder.mkdir()
    yield folder
    for name in os.listdir(folder):
        (folder / name).unlink()
    folder.rmdir()


def volumes(mount: dict[str, Any], *used: str) -> list[str]:
    return [volume.destination for volume in tmpfs_volumes({"mounts": [mount]}, set(used))]


# Volumes


@pytest.mark.parametrize(
    ("change", "saved"),
    [
        ({}, True),
        ({"destination": "/dev/shm/"}, True),
        ({"options": ["bind", "rw"]}, True),
        ({"options": [], "type": "bind"}, True),
        ({"options": None, "type": "bind"}, True),
        ({"options": ["rbind", "ro"]}, False),
        ({"options": ["rw"], "type": "tmpfs"}, False),
        ({"source": "/nowhere"}, False),
        ({"source": "/proc"}, False),
        ({"destination": "/cache"}, False),
    ],
)
def test_shared_memory(shm: Path, change: dict[str, Any], saved: bool) -> None:
    mount = {"destination": "/dev/shm", "source": str(shm), "type": "bind", "options": ["rbind"]}
    assert bool(volumes({**mount, **change})) == saved


def test_other_volumes_only_if_they_are_used(shm: Path, tmp_path: Path) -> None:
    mount = {"destination": "/cache", "source": str(shm), "options": ["rbind"]}
    assert volumes(mount, "/cache/inner/file", "/etc/x") == ["/cache"]
    assert volumes(mount, "/cache/file (deleted)") == ["/cache"]
    assert volumes(mount, "/cachet/file", "/cache") == []
    assert volumes({**mount, "options": ["rbind", "ro"]}, "/cache/file") == []
    assert volumes({**mount, "source": "/proc"}, "/cache/file") == [], "not on a tmpfs"


def test_a_file_of_the_hosts_is_no_volume(shm: Path) -> None:
    (shm / "file").touch()
    mount = {"destination": "/dev/shm", "source": str(shm / "file"), "options": ["rbind"]}
    assert volumes(mount) == []


def test_no_mounts() -> None:
    assert list(tmpfs_volumes({}, set())) == []
    assert list(tmpfs_volumes({"mounts": None}, set())) == []


def test_surveyed(shm: Path, tmp_path: Path) -> None:
    """This process holds a file open there, and maps none; a process that has ended has none."""
    mount = {"destination": str(shm), "source": str(shm), "options": ["rbind"]}
    spec = {"mounts": [mount]}
    gone = 2**22 + 1
    work = make_work(tmp_path, spec, pid=os.getpid(), cgroup_pids=[gone, os.getpid()])
    assert survey(spec, work).volumes == ()
    with open(shm / "file", "w"):
        assert survey(spec, work).volumes == (Volume(str(shm), str(shm)),)


@pytest.mark.parametrize(
    ("place", "env", "saved"),
    [
        ("/snapshot-control", [], []),
        ("/snapshot-control/", [], []),
        ("/work/control", ["SNAPSHOT_CONTROL_DIR=/work/control"], []),
        ("/work/control", ["DYN_SNAPSHOT_CONTROL_DIR=/work/control"], []),
        ("/work/control", [], ["/work/control"]),
        ("/work/control", ["SNAPSHOT_CONTROL_DIR=elsewhere"], ["/work/control"]),
    ],
)
def test_the_control_directory_is_each_containers_own(
    shm: Path, place: str, env: list[str], saved: list[str]
) -> None:
    """Even if the worker has its FIFO open: what was said to one is not said to its clones."""
    mount = {"destination": place, "source": str(shm), "options": ["rbind"]}
    spec = {"mounts": [mount], "process": {"env": env}}
    found = tmpfs_volumes(spec, {f"{os.path.normpath(place)}/wake"})
    assert [volume.destination for volume in found] == saved


# Connections

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue\n"
LOOPBACK6 = "00000000000000000000000001000000:1F90"
MAPPED6 = "0000000000000000FFFF00000100007F:1F90"
OUTSIDE6 = "B80D0120000000000000000001000000:01BB"
MAPPED_OUTSIDE6 = "0000000000000000FFFF00000A00000A:01BB"


def row(remote: str, state: str = "01") -> str:
    return f"   0: 0100007F:1F90 {remote} {state} 00000000:00000000 00:00000000\n"


@pytest.mark.parametrize(
    ("tcp", "tcp6", "inside", "outside"),
    [
        ([], [], 0, 0),
        ([row("0100007F:A")], [], 1, 0),
        ([row("0200017F:A")], [], 1, 0),
        ([row("0A00000A:1BB")], [], 0, 1),
        ([row("7F00000A:1BB")], [], 0, 1),
        ([row("0A00000A:1BB"), row("0100007F:A")], [], 1, 1),
        ([row("00000000:0000", "0A"), row("0A00000A:1BB", "06")], [], 0, 0),
        ([], [row(LOOPBACK6), row(MAPPED6)], 2, 0),
        ([], [row(OUTSIDE6), row(MAPPED_OUTSIDE6)], 0, 2),
        ([row("0100007F:A")], [row(OUTSIDE6)], 1, 1),
        (None, None, 0, 0),
        ([row("0100007F:A")], None, 1, 0),
    ],
)
def test_connections(
    monkeypatch: pytest.MonkeyPatch,
    tcp: list[str] | None,
    tcp6: list[str] | None,
    inside: int,
    outside: int,
) -> None:
    tables = {"/proc/7/net/tcp": tcp, "/proc/7/net/tcp6": tcp6}

    def opened(path: str) -> io.StringIO:
        rows = tables[path]
        if rows is None:
            raise FileNotFoundError(path)
        return io.StringIO(HEAD + "".join(rows))

    monkeypatch.setattr(contents, "open", opened, raising=False)
    assert established(7) == Connections(inside, outside)


# Copies


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """An overlay's upper directory with everything that can be in one."""
    folder = tmp_path / "upper"
    (folder / "opaque").mkdir(parents=True)
    (folder / "opaque" / "file").write_text("x")
    os.setxattr(folder / "opaque", "trusted.overlay.opaque", b"y")
    os.mknod(folder / "removed", stat.S_IFCHR, os.makedev(0, 0))
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "twin").hardlink_to(folder / "opaque" / "file")
    os.mkfifo(folder / "fifo", 0o640)
    (folder / "owned").touch()
    os.chown(folder / "owned", 5, 6)
    (folder / "owned").chmod(0o4751)
    os.setxattr(folder / "owned", "user.note", b"z")
    with open(folder / "sparse", "wb") as file:
        file.truncate(1 << 30)
    os.utime(folder / "owned", ns=(10**18 + 3, 10**18 + 5))
    os.chown(folder, 7, 8)
    folder.chmod(0o1750)
    return folder


def attributes(folder: Path) -> dict[str, object]:
    """Everything that a copy must not change, by path."""
    found: dict[str, object] = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        info = path.lstat()
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
        found[str(path.relative_to(folder))] = (
            info.st_mode, info.st_uid, info.st_gid, info.st_rdev, size, info.st_mtime_ns, xattrs
        )  # fmt: skip
    return found


@root
@pytest.mark.parametrize("exists", [False, True])
def test_an_upper_directory(upper: Path, tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "copy"
    if exists:
        target.mkdir()
    copy_upper(upper, target)
    assert attributes(target) == attributes(upper)
    removed = (target / "removed").lstat()
    assert stat.S_ISCHR(removed.st_mode)
    assert removed.st_rdev == os.makedev(0, 0), "a whiteout"
    assert os.getxattr(target / "opaque", "trusted.overlay.opaque") == b"y"
    assert (target / "twin").samefile(target / "opaque" / "file")
    assert (target / "sparse").stat().st_blocks < 100


@root
def test_the_difference(upper: Path, tmp_path: Path) -> None:
    save_difference(upper, tmp_path / "rootfs")
    assert attributes(tmp_path / "rootfs") == attributes(upper)


def test_no_difference(tmp_path: Path) -> None:
    save_difference(tmp_path / "upper", None)
    save_difference(None, None)
    assert os.listdir(tmp_path) == []
    save_difference(None, tmp_path / "rootfs")
    assert os.listdir(tmp_path / "rootfs") == []


def test_a_copy_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFailed, match="No such file or directory"):
        copy_upper(tmp_path / "none", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_volumes_are_numbered(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    found = Contents(
        tuple(Volume(str(tmp_path / name), f"/{name}") for name in ("a", "b")), Connections(0, 0)
    )
    save_volumes(found, tmp_path / "extras")
    saved = tmp_path / "extras" / "volumes"
    assert sorted(os.listdir(saved)) == ["0", "1"]
    assert [(saved / str(n) / "file").read_text() for n in (0, 1)] == ["a", "b"]
    assert (saved / "0").stat().st_mode & 0o777 == 0o700


def test_no_volumes(tmp_path: Path) -> None:
    save_volumes(Contents((), Connections(0, 0)), tmp_path)
    assert os.listdir(tmp_path) == []


# What refuses a checkpoint


@root
def test_what_can_be_saved(upper: Path) -> None:
    refuse_devices(upper)


@root
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_devices(upper: Path, kind: int) -> None:
    os.mknod(upper / "opaque" / "device", kind | 0o600, os.makedev(1, 3))
    with pytest.raises(FailedPrecondition, match=r"^/opaque/device is a device"):
        refuse_devices(upper)


def test_what_ends_while_it_is_looked_at(tmp_path: Path) -> None:
    refuse_devices(tmp_path / "none")
