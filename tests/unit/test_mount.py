"""Mounts are really made (as root) in temporary folders, and none may be left."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from fakes.host import open_fds

from shim import mount
from shim.errors import InvalidArgument, Unimplemented
from shim.mount import Options, inside, mount_all, mount_points, unmount_all

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


class Mount:
    """containerd.types.Mount, as the wire classes have it."""

    def __init__(self, kind: str, source: str, *options: str, target: str = "") -> None:
        self.type, self.source, self.options, self.target = kind, source, list(options), target


class Entry(NamedTuple):
    point: str
    flags: set[str]
    kind: str
    tags: list[str]
    data: str


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "root fs\\"  # both characters are escaped in mountinfo
    folder.mkdir()
    yield folder
    left = mount_points(str(tmp_path))
    subprocess.run(["umount", "-lR", *reversed(left)], check=False)
    assert left == []


def entries(folder: Path) -> list[Entry]:
    """What mountinfo says about the mounts on `folder`."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        fields, (kind, _, data) = head.split(), tail.split(" ", 2)
        point = fields[4].replace("\\040", " ").replace("\\134", "\\")
        if point == str(folder):
            found.append(Entry(point, set(fields[5].split(",")), kind, fields[6:], data))
    return found


def layers(base: Path, count: int) -> list[Path]:
    """Folders as containerd's overlay snapshotter has them, each with a file of its own."""
    folders = [base / "snapshots" / str(number) / "fs" for number in range(count)]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / f"file{number}").write_text(str(number))
        (folder / "who").write_text(str(number))
    return folders


def overlay(base: Path, lower: list[Path]) -> Mount:
    for name in ("upper", "work"):
        (base / name).mkdir()
    joined = ":".join(map(str, lower))
    options = [f"workdir={base}/work", f"upperdir={base}/upper", f"lowerdir={joined}"]
    return Mount("overlay", "overlay", "index=off", *options)


def test_a_few_layers(tmp_path: Path, rootfs: Path) -> None:
    mount_all([overlay(tmp_path, layers(tmp_path, 3))], str(rootfs))
    assert (rootfs / "who").read_text() == "0"  # the first layer is the topmost
    assert {f.name for f in rootfs.iterdir()} == {"file0", "file1", "file2", "who"}
    unmount_all(str(rootfs))


def test_a_hundred_layers(tmp_path: Path, rootfs: Path) -> None:
    base = tmp_path / "io.containerd.snapshotter.v1.overlayfs"
    base.mkdir()
    here = Path.cwd()
    asked = overlay(base, layers(base, 128))
    assert len(",".join(asked.options)) > 2 * os.sysconf("SC_PAGE_SIZE")
    mount_all([asked], str(rootfs))
    assert len(list(rootfs.iterdir())) == 129
    (rootfs / "new").write_text("x")
    assert (base / "upper" / "new").exists()
    assert Path.cwd() == here
    unmount_all(str(rootfs))


def test_a_hundred_layers_with_odd_names(tmp_path: Path, rootfs: Path) -> None:
    base = tmp_path / "a:b,c\\d e"
    base.mkdir()
    asked = overlay(base, layers(base, 100))
    escaped = str(base).replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
    asked.options = [option.replace(str(base), escaped) for option in asked.options]
    # upperdir and workdir hold no colon-separated list, but a colon may be escaped there too
    mount_all([asked], str(rootfs))
    assert len(list(rootfs.iterdir())) == 101
    unmount_all(str(rootfs))


def test_options_of_more_than_a_page_are_refused(tmp_path: Path, rootfs: Path) -> None:
    with pytest.raises(InvalidArgument, match="exceed one page"):
        mount_all([Mount("tmpfs", "tmpfs", "mode=" + "7" * 5000)], str(rootfs))


def test_bind_readonly(tmp_path: Path, rootfs: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    mount_all([Mount("bind", str(source), "rbind", "ro", "nosuid")], str(rootfs))
    (entry,) = entries(rootfs)
    assert {"ro", "nosuid"} <= entry.flags
    with pytest.raises(OSError, match="Read-only") as caught:
        (rootfs / "file").write_text("x")
    assert caught.value.errno == errno.EROFS
    unmount_all(str(rootfs))


def test_bind_writable(tmp_path: Path, rootfs: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    mount_all([Mount("bind", str(source), "rbind", "rw")], str(rootfs))
    (rootfs / "file").write_text("x")
    assert (source / "file").exists()
    unmount_all(str(rootfs))


def test_flags_and_data(rootfs: Path) -> None:
    options = ["nosuid", "nodev", "noexec", "noatime", "size=64k", "mode=0700"]
    mount_all([Mount("tmpfs", "tmpfs", *options)], str(rootfs))
    (entry,) = entries(rootfs)
    assert {"rw", "nosuid", "nodev", "noexec", "noatime"} <= entry.flags
    assert "size=64k" in entry.data
    assert "mode=700" in entry.data
    unmount_all(str(rootfs))


@pytest.mark.parametrize(
    ("option", "tag"), [("shared", "shared:"), ("rslave", ""), ("unbindable", "unbindable")]
)
def test_propagation(rootfs: Path, option: str, tag: str) -> None:
    mount_all([Mount("tmpfs", "tmpfs", option)], str(rootfs))
    (entry,) = entries(rootfs)
    assert any(t.startswith(tag) for t in entry.tags) if tag else entry.tags == []
    unmount_all(str(rootfs))


def test_remount(rootfs: Path) -> None:
    mount_all([Mount("tmpfs", "tmpfs"), Mount("tmpfs", "", "remount", "size=64k")], str(rootfs))
    (entry,) = entries(rootfs)
    assert "size=64k" in entry.data
    unmount_all(str(rootfs))


def loops_over(path: Path) -> list[str]:
    backing = Path("/sys/block").glob("loop*/loop/backing_file")
    return [str(file) for file in backing if file.read_text().strip() == str(path)]


@pytest.mark.parametrize("options", [["loop"], ["loop", "ro"], ["loop", "direct-io"]])
def test_loop(tmp_path: Path, rootfs: Path, options: list[str]) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mount_all([Mount("ext4", str(image), *options)], str(rootfs))
    assert (rootfs / "lost+found").is_dir()
    assert len(loops_over(image)) == 1
    assert ("ro" in options) == ("ro" in entries(rootfs)[0].flags)
    unmount_all(str(rootfs))
    assert loops_over(image) == []


def test_loop_is_released_if_the_mount_fails(tmp_path: Path, rootfs: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with pytest.raises(OSError, match="mount ext4"):
        mount_all([Mount("ext4", str(image), "loop")], str(rootfs))
    assert loops_over(image) == []


def test_missing_loop_file_is_named(tmp_path: Path, rootfs: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mount_all([Mount("ext4", str(tmp_path / "none"), "loop")], str(rootfs))
    assert caught.value.filename == str(tmp_path / "none")


def test_targets_below_the_rootfs(tmp_path: Path, rootfs: Path) -> None:
    mounts = [Mount("tmpfs", "tmpfs", "mode=0755"), Mount("tmpfs", "tmpfs", target="/sub")]
    with pytest.raises(FileNotFoundError) as caught:
        mount_all(mounts, str(rootfs))
    assert caught.value.filename == str(rootfs / "sub")
    assert entries(rootfs) == []  # the first was undone
    (rootfs / "sub").mkdir()
    mount_all(mounts[1:], str(rootfs))
    assert len(entries(rootfs / "sub")) == 1
    unmount_all(str(rootfs))


def test_all_or_nothing_leaves_what_was_there(tmp_path: Path, rootfs: Path) -> None:
    mount_all([Mount("tmpfs", "before")], str(rootfs))
    broken = [Mount("tmpfs", "tmpfs"), Mount("tmpfs", "tmpfs"), Mount("no-such-type", "x")]
    with pytest.raises(OSError, match="no-such-type") as caught:
        mount_all(broken, str(rootfs))
    assert caught.value.errno == errno.ENODEV
    assert caught.value.filename == str(rootfs)
    assert len(entries(rootfs)) == 1
    unmount_all(str(rootfs))


def test_a_bind_whose_remount_fails_is_undone(
    tmp_path: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = mount._call, []

    def second_fails(*args: str | int) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.EPERM, "no", "x")
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(mount, "_call", second_fails)
    with pytest.raises(PermissionError):
        mount_all([Mount("bind", str(tmp_path), "rbind", "ro")], str(rootfs))


@pytest.mark.parametrize("option", ["uidmap=0:1000:10", "gidmap=0:1000:10"])
def test_idmapped_mounts_are_refused_by_name(rootfs: Path, option: str) -> None:
    with pytest.raises(Unimplemented, match=option):
        mount_all([Mount("bind", "/", "rbind", option)], str(rootfs))


def test_unconsumed_options_are_refused_by_name(rootfs: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"X-containerd\.mkdir\.path"):
        mount_all([Mount("bind", "/", "rbind", "X-containerd.mkdir.path=/a")], str(rootfs))


def test_fuse_is_refused_by_name(rootfs: Path) -> None:
    with pytest.raises(Unimplemented, match=r"fuse3\.x"):
        mount_all([Mount("fuse3.x", "x")], str(rootfs))


def test_options_clear_earlier_ones() -> None:
    options = Options(["ro", "nosuid", "relatime", "rw", "suid", "norelatime", "defaults", "x=1"])
    assert (options.flags, options.data) == (0, ["x=1"])


def test_unmount_takes_nested_and_stacked_mounts(tmp_path: Path, rootfs: Path) -> None:
    mount_all([Mount("tmpfs", "one"), Mount("tmpfs", "two")], str(rootfs))
    for name in ("a", "a/b"):
        (rootfs / name).mkdir()
        mount_all([Mount("tmpfs", name)], str(rootfs / name))
        mount_all([Mount("tmpfs", name)], str(rootfs / name)) if name == "a" else None
    mount_all([Mount("tmpfs", "three")], str(rootfs))  # covers them all
    assert len(mount_points(str(rootfs))) == 6
    unmount_all(str(rootfs))
    assert mount_points(str(rootfs)) == []


def test_unmount_spares_neighbours(tmp_path: Path, rootfs: Path) -> None:
    neighbour = tmp_path / (rootfs.name + "2")
    neighbour.mkdir()
    mount_all([Mount("tmpfs", "tmpfs")], str(neighbour))
    unmount_all(str(rootfs))
    assert len(entries(neighbour)) == 1
    unmount_all(str(neighbour))


def test_unmount_is_idempotent(tmp_path: Path, rootfs: Path) -> None:
    mount_all([Mount("tmpfs", "tmpfs")], str(rootfs))
    unmount_all(str(rootfs))
    unmount_all(str(rootfs))
    unmount_all(str(tmp_path / "never" / "there"))


def test_unmount_detaches_what_is_busy(rootfs: Path) -> None:
    mount_all([Mount("tmpfs", "tmpfs")], str(rootfs))
    with (rootfs / "open").open("w"):
        unmount_all(str(rootfs))
        assert entries(rootfs) == []


def test_unmount_through_a_link(tmp_path: Path, rootfs: Path) -> None:
    mount_all([Mount("tmpfs", "tmpfs")], str(rootfs))
    link = tmp_path / "link"
    link.symlink_to(rootfs)
    unmount_all(str(link))
    assert entries(rootfs) == []


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("", ""),
        ("/", ""),
        ("/a/./b//c", "/a/b/c"),
        ("../../etc", "/etc"),
        ("a/../../b", "/b"),
        ("absolute/x", "/etc/x"),
        ("climbing/x", "/outside/x"),
        ("dir/relative/x", "/dir/real/x"),
    ],
)
def test_inside_stays_inside(tmp_path: Path, target: str, where: str) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "absolute").symlink_to("/etc")
    (tmp_path / "climbing").symlink_to("../../../outside")
    (tmp_path / "dir" / "relative").symlink_to("real")
    assert inside(str(tmp_path), target) == f"{tmp_path}{where}"


def test_inside_refuses_circles(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="circle") as caught:
        inside(str(tmp_path), "circle/x")
    assert caught.value.errno == errno.ELOOP


def test_no_descriptor_is_left_open(tmp_path: Path, rootfs: Path) -> None:
    before = open_fds()
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    for _ in range(3):
        mount_all([overlay_of_two(tmp_path)], str(rootfs))
        unmount_all(str(rootfs))
        with pytest.raises(OSError, match="ext4"):
            mount_all([Mount("ext4", str(image), "loop")], str(rootfs))
    assert open_fds(before) == set()


def overlay_of_two(tmp_path: Path) -> Mount:
    for name in ("one", "two"):
        (tmp_path / name).mkdir(exist_ok=True)
    return Mount("overlay", "overlay", f"lowerdir={tmp_path}/one:{tmp_path}/two")
