"""Copies of trees that others can write to: everything that can be there, and what must not be."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.host import open_fds

from shim.snapshot import tree
from shim.snapshot.tree import copy_tree, open_directory

SECRET = "somebody else's"
MIB = 1 << 20


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


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that no copy has any business in."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text(SECRET)
    return folder


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds(before) == set()


def pair(act: Callable[[int, int], int | None], source: Path, target: Path) -> int:
    one, other = open_directory(source), open_directory(target)
    try:
        return act(one, other) or 0
    finally:
        os.close(one)
        os.close(other)


def copy(source: Path, target: Path) -> int:
    return pair(copy_tree, source, target)


# What is copied


def test_files_and_folders(source: Path, target: Path) -> None:
    (source / "a").write_text("one")
    (source / "empty").touch()
    (source / "x" / "y").mkdir(parents=True)
    (source / "x" / "y" / "b").write_text("four")
    assert copy(source, target) == 7
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*")) == [
        "a",
        "empty",
        "x",
        "x/y",
        "x/y/b",
    ]
    assert (target / "x" / "y" / "b").read_text() == "four"


@pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
def test_owner_mode_and_times(source: Path, target: Path) -> None:
    (source / "file").touch()
    (source / "folder").mkdir()
    (source / "folder" / "inner").touch()
    os.mkfifo(source / "fifo")
    (source / "link").symlink_to("file")
    for number, name in enumerate(("file", "folder", "fifo"), 1):
        os.chown(source / name, number, number + 10)
        os.chmod(source / name, 0o2666 + number)
        os.utime(source / name, ns=(10**18 + number, 10**18 + 7 * number))
    os.chown(source / "link", 8, 9, follow_symlinks=False)
    before = os.umask(0o077)
    try:
        copy(source, target)
    finally:
        os.umask(before)
    for name in ("file", "folder", "fifo", "link"):
        was, is_ = os.lstat(source / name), os.lstat(target / name)
        assert (is_.st_mode, is_.st_uid, is_.st_gid) == (was.st_mode, was.st_uid, was.st_gid), name
    for name in ("file", "folder"):
        was, is_ = os.lstat(source / name), os.lstat(target / name)
        assert (is_.st_atime_ns, is_.st_mtime_ns) == (was.st_atime_ns, was.st_mtime_ns), name


def test_extended_attributes(source: Path, target: Path) -> None:
    (source / "file").touch()
    (source / "folder").mkdir()
    for name in ("file", "folder"):
        os.setxattr(source / name, "user.thaw", b"\0value")
    copy(source, target)
    for name in ("file", "folder"):
        assert os.getxattr(target / name, "user.thaw") == b"\0value"


def test_holes_stay_holes(source: Path, target: Path) -> None:
    with open(source / "file", "wb") as file:
        file.seek(16 * MIB)
        file.write(b"middle")
        file.truncate(64 * MIB)
    with open(source / "hole", "wb") as file:
        file.truncate(64 * MIB)
    copy(source, target)
    for name in ("file", "hole"):
        was, is_ = (source / name).stat(), (target / name).stat()
        assert is_.st_size == 64 * MIB
        assert is_.st_blocks <= was.st_blocks + 64
    with open(target / "file", "rb") as file:
        assert file.read(16) == bytes(16)
        file.seek(16 * MIB - 4)
        assert file.read(16) == bytes(4) + b"middle" + bytes(6)


def test_links_are_links(source: Path, target: Path, outside: Path) -> None:
    (source / "absolute").symlink_to(outside / "file")
    (source / "folder").symlink_to(outside)
    (source / "dangling").symlink_to("../nowhere")
    copy(source, target)
    for name in ("absolute", "folder", "dangling"):
        assert os.readlink(target / name) == os.readlink(source / name)


def test_hard_links_across_folders(source: Path, target: Path) -> None:
    (source / "a" / "inner").mkdir(parents=True)
    (source / "a" / "inner" / "first").write_text("same")
    (source / "z").hardlink_to(source / "a" / "inner" / "first")
    (source / "b").hardlink_to(source / "z")
    (source / "lonely").write_text("same")
    assert copy(source, target) == 8, "a file with three names is copied once"
    inode = (target / "z").stat().st_ino
    assert (target / "z").stat().st_nlink == 3
    assert {(target / name).stat().st_ino for name in ("b", "a/inner/first")} == {inode}
    assert (target / "lonely").stat().st_ino != inode


def test_a_hard_link_whose_other_name_is_elsewhere(source: Path, target: Path) -> None:
    (source / "file").write_text("x")
    (source.parent / "beside").hardlink_to(source / "file")
    copy(source, target)
    assert (target / "file").stat().st_nlink == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="devices need root")
def test_sockets_and_devices_are_left_out(source: Path, target: Path) -> None:
    os.mkfifo(source / "fifo")
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(source, os.O_PATH)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        copy(source, target)
    assert os.listdir(target) == ["fifo"]
    assert stat.S_ISFIFO((target / "fifo").lstat().st_mode)


# What is there already


def test_a_file_is_replaced_never_written_into(source: Path, target: Path, outside: Path) -> None:
    (source / "linked").write_text("new")
    (source / "symlinked").write_text("new")
    (source / "link").symlink_to("linked")
    os.mkfifo(source / "fifo")
    (target / "linked").hardlink_to(outside / "file")
    (target / "symlinked").symlink_to(outside / "file")
    (target / "link").symlink_to(outside)
    (target / "fifo").hardlink_to(outside / "file")
    copy(source, target)
    assert (outside / "file").read_text() == SECRET
    assert [(target / name).read_text() for name in ("linked", "symlinked")] == ["new", "new"]
    assert not (target / "symlinked").is_symlink()
    assert os.readlink(target / "link") == "linked"
    assert stat.S_ISFIFO((target / "fifo").lstat().st_mode)


def test_what_else_is_there_stays(source: Path, target: Path) -> None:
    (source / "folder").mkdir()
    (source / "folder" / "a").touch()
    (target / "folder").mkdir()
    (target / "folder" / "other").write_text("other's")
    copy(source, target)
    assert sorted(os.listdir(target / "folder")) == ["a", "other"]


def test_a_link_in_the_place_of_a_folder_is_not_followed(
    source: Path, target: Path, outside: Path
) -> None:
    (source / "folder").mkdir()
    (source / "folder" / "file").write_text("ours")
    (target / "folder").symlink_to(outside)
    with pytest.raises(OSError, match="folder"):
        copy(source, target)
    assert (outside / "file").read_text() == SECRET


def test_a_source_that_is_a_link(source: Path, outside: Path) -> None:
    (source / "link").symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        open_directory(source / "link")


# What is swapped while it is read: `_stat` is the moment between looking and using


@pytest.fixture
def swap(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Callable[[], object]], None]:
    """After `path` has been looked at for the first time, something else happens."""

    def arm(path: Path, then: Callable[[], object]) -> None:
        look, armed = tree._stat, [True]

        def looked(name: str, folder: int) -> os.stat_result:
            info = look(name, folder)
            if name == path.name and armed.pop():
                armed.append(False)
                then()
            return info

        monkeypatch.setattr(tree, "_stat", looked)

    return arm


def test_a_file_becomes_a_link(
    source: Path, target: Path, outside: Path, swap: Callable[..., None]
) -> None:
    (source / "file").write_text("ours")

    def become() -> None:
        (source / "file").unlink()
        (source / "file").symlink_to(outside / "file")

    swap(source / "file", become)
    with pytest.raises(OSError, match="file"):
        copy(source, target)
    assert os.listdir(target) == []


def test_a_folder_becomes_a_link(
    source: Path, target: Path, outside: Path, swap: Callable[..., None]
) -> None:
    (source / "folder").mkdir()

    def become() -> None:
        (source / "folder").rmdir()
        (source / "folder").symlink_to(outside)

    swap(source / "folder", become)
    with pytest.raises(OSError, match="folder"):
        copy(source, target)
    assert os.listdir(target) == []


def test_a_file_becomes_a_fifo(source: Path, target: Path, swap: Callable[..., None]) -> None:
    """Opening it must not wait for a writer that never comes."""
    (source / "file").write_text("ours")

    def become() -> None:
        (source / "file").unlink()
        os.mkfifo(source / "file")

    swap(source / "file", become)
    assert copy(source, target) == 0
    assert os.listdir(target) == []


def test_a_file_becomes_shorter(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "file").write_bytes(b"x" * MIB)
    inner = tree._copy_range

    def shortened(reader: int, writer: int, start: int, end: int) -> None:
        os.truncate(source / "file", 10)
        inner(reader, writer, start, end)

    monkeypatch.setattr(tree, "_copy_range", shortened)
    copy(source, target)
    assert (target / "file").read_bytes().rstrip(b"\0") == b"x" * 10


def test_a_copy_that_fails_leaves_no_hidden_file(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "file").write_text("ours")
    (target / "file").write_text("theirs")

    def fail(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(tree, "_copy_range", fail)
    with pytest.raises(OSError, match="no space"):
        copy(source, target)
    assert os.listdir(target) == ["file"]
    assert (target / "file").read_text() == "theirs"
