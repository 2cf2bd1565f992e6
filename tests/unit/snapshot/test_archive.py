"""Archives laid where others can write: everything that can be in one, and what must not be."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.archives import END, extended, header, lay, member, record, records, take_back, write
from fakes.host import open_fds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.errors import CheckpointFailed, Damaged, Unfit
from shim.snapshot import archive as archives
from shim.snapshot import laying, parts
from shim.snapshot.archive import Archive, pack

SECRET = "somebody else's"
MIB = 1 << 20
WHITEOUT = header(b"gone", b"3")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


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
    """A folder that no archive has any business in."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text(SECRET)
    return folder


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds(before) == set()


def attributes(folder: Path) -> dict[str, object]:
    """Everything that must come back, by path."""
    found: dict[str, object] = {}
    inodes: dict[int, int] = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        info = path.lstat()
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        same = 0 if stat.S_ISCHR(info.st_mode) else inodes.setdefault(info.st_ino, len(inodes))
        found[str(path.relative_to(folder))] = (
            info.st_mode, info.st_uid, info.st_gid, info.st_rdev, size, info.st_mtime_ns, xattrs,
            content, same,
        )  # fmt: skip
    return found


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel takes it: linux/posix_acl_xattr.h."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.fixture
def everything(source: Path) -> Path:
    """A folder with all that a worker can leave in its root file system."""
    (source / "opaque" / "inner").mkdir(parents=True)
    (source / "opaque" / "file").write_text("x")
    os.setxattr(source / "opaque", "trusted.overlay.opaque", b"y")
    os.mknod(source / "removed", stat.S_IFCHR, os.makedev(0, 0))
    (source / "removed too").hardlink_to(source / "removed")
    (source / "link").symlink_to("/etc/passwd")
    os.link(source / "link", source / "link too", follow_symlinks=False)
    os.chown(source / "link", 11, 12, follow_symlinks=False)
    os.utime(source / "link", ns=(5, 10**18 + 1), follow_symlinks=False)
    (source / "twin").hardlink_to(source / "opaque" / "file")
    (source / "opaque" / "inner" / "triplet").hardlink_to(source / "twin")
    os.mkfifo(source / "fifo", 0o640)
    (source / "owned").write_bytes(b"program")
    os.chown(source / "owned", 5, 6)
    (source / "owned").chmod(0o4751)
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service
    os.setxattr(source / "owned", "security.capability", capability)
    os.setxattr(source / "owned", "user.a=b%c", bytes(range(256)))
    shared = acl((1, 6, 0xFFFFFFFF), (2, 7, 42), (4, 4, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF),
                 (32, 4, 0xFFFFFFFF))  # fmt: skip
    (source / "shared").mkdir()
    (source / "shared" / "file").touch()
    os.setxattr(source / "shared" / "file", "system.posix_acl_access", shared)
    os.setxattr(source / "shared", "system.posix_acl_default", shared)
    with open(source / "sparse", "wb") as file:
        for place in (1 * MIB, 3 * MIB, 3 * MIB + 8192):
            file.seek(place)
            file.write(b"data" * 1000)
        file.truncate(5 * MIB)
    os.close(os.open(os.fsencode(source) + b"/\xff\n\xe9", os.O_CREAT | os.O_WRONLY, 0o600))
    (source / ("n" * 255)).touch()
    (source / "old").touch()
    os.utime(source / "old", ns=(0, -1_500_000_000))
    os.utime(source / "owned", ns=(10**18 + 3, 10**18 + 5))
    os.utime(source / "opaque", ns=(10**18 + 3, 10**18 + 7))
    os.chown(source, 7, 8)
    source.chmod(0o1750)
    os.utime(source, ns=(10**18, 10**18 + 9))
    return source


@pytest.mark.parametrize("limit", [1 << 30, 10_000])
def test_everything_comes_back(
    everything: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(parts.cut, "__defaults__", (limit,))
    base = tmp_path / "rootfs.tar"
    pack(everything, base)
    archive = Archive(base)
    assert (len(archive.parts()) > 3) == (limit < MIB)
    assert archive.size == sum(path.stat().st_size for path in archive.parts()) < 200_000
    before = os.umask(0o077)
    try:
        assert lay(archive, target, whiteouts=True) == 5 * MIB + 1 + 7
    finally:
        os.umask(before)
    assert attributes(target) == attributes(everything)
    assert (target / "sparse").stat().st_blocks * 512 <= 64 << 10
    take_back(archive, target)
    assert os.listdir(target) == []


def test_large_files_are_copied_whole(source: Path, target: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (source / name).write_bytes(os.urandom(3 * MIB + 11))
    pack(source, tmp_path / "a.tar")
    lay(Archive(tmp_path / "a.tar"), target)
    for name in ("a", "b"):
        assert (target / name).read_bytes() == (source / name).read_bytes()


def test_the_same_folder_makes_the_same_bytes(everything: Path, tmp_path: Path) -> None:
    shutil.copytree(everything / "opaque", tmp_path / "read", symlinks=True)
    for name in ("one.tar", "two.tar"):
        pack(everything, tmp_path / name)
        (everything / "owned").read_bytes()
    assert (tmp_path / "one.tar.0000").read_bytes() == (tmp_path / "two.tar.0000").read_bytes()


def test_what_is_packed_stays_and_parts_are_ours_alone(source: Path, tmp_path: Path) -> None:
    (source / "file").write_text("x")
    pack(source, tmp_path / "a.tar")
    assert os.listdir(source) == ["file"]
    assert (tmp_path / "a.tar.0000").stat().st_mode & 0o777 == 0o600
    assert Archive(tmp_path / "a.tar").exists()
    assert not Archive(tmp_path / "b.tar").exists()
    assert str(Archive(tmp_path / "a.tar")) == f"{tmp_path}/a.tar"


def test_sockets_are_left_out(source: Path, tmp_path: Path) -> None:
    (source / "file").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(source, os.O_PATH)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        pack(source, tmp_path / "a.tar")
    assert Archive(tmp_path / "a.tar").names() == ["", "file"]


def test_what_could_not_be_restored_is_not_packed(source: Path, tmp_path: Path) -> None:
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(CheckpointFailed, match="'null' is a device"):
        pack(source, tmp_path / "a.tar")
    assert os.listdir(tmp_path) == ["source"]


def test_a_tar_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFailed, match=r"none.*No such file"):
        pack(tmp_path / "none", tmp_path / "a.tar")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out while tar still writes: it is ended by that."""
    (source / "file").write_bytes(bytes(MIB) + b"x" * 8 * MIB)

    def full(reader: int, base: Path) -> None:
        parts.part(base, 0).write_bytes(os.read(reader, 100))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "cut", full)
    with pytest.raises(CheckpointFailed, match="No space left") as caught:
        pack(source, tmp_path / "a.tar")
    assert isinstance(caught.value.__cause__, OSError)
    assert os.listdir(tmp_path) == ["source"]


# What is refused, before anything is touched

FOLDER = header(b"d/", b"5")
FILE = member(b"f", b"new")


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([header(b"x", b"4")], "'x' is a device"),
        ([header(b"x", b"3", major=b"0000001\0", minor=b"0000003\0")], "'x' is a device"),
        ([header(b"x", b"3", minor=b"0000001\0")], "'x' is a device"),
        ([header(b"d/e", b"0")], "'d/e' is not in its folder's place"),
        ([header(b"l", b"2", target=b"/"), header(b"l/x")], "'l/x' is not in its folder's place"),
        ([FOLDER, header(b"e/", b"5"), header(b"d/x")], "'d/x' is not in its folder's place"),
        ([FOLDER, header(b"d/e/", b"5"), header(b"e/x")], "'e/x' is not in its folder's place"),
        ([FILE], "'f' comes twice"),
        ([FOLDER, FOLDER], "'d' comes twice"),
        ([header(b"f/", b"5")], "'f' comes twice"),
        ([header(b"./", b"5")], "'' is not in its folder's place"),
        ([header(b"x", b"1", target=b"y"), header(b"y")], "no earlier member"),
        ([header(b"x", b"1", target=b"x")], "no earlier member"),
        ([FOLDER, header(b"x", b"1", target=b"d")], "no earlier member"),
        ([header(b"x", b"1", target=b"../outside/file")], "bad name"),
        ([header(b"x", b"1", target=b"/etc/passwd")], "bad name"),
        ([header(b"../x")], "bad name"),
        ([header(b"/x")], "bad name"),
    ],
)
def test_refused(tmp_path: Path, target: Path, pieces: list[bytes], words: str) -> None:
    archive = write(tmp_path, FILE, *pieces, END)
    (target / "f").write_text("theirs")
    with pytest.raises(Unfit, match=words):
        lay(archive, target, whiteouts=True)
    with pytest.raises(Unfit, match=words):
        archive.names()
    take_back(archive, target)
    assert (target / "f").read_text() == "theirs"


def test_whiteouts_are_for_overlays(tmp_path: Path, target: Path) -> None:
    archive = write(tmp_path, WHITEOUT, END)
    with pytest.raises(Unfit, match="'gone' is a whiteout"):
        lay(archive, target)
    lay(archive, target, whiteouts=True)
    assert stat.S_ISCHR((target / "gone").lstat().st_mode)


def test_no_archive(tmp_path: Path, target: Path) -> None:
    with pytest.raises(Damaged, match=r"a\.tar\.0000 is missing"):
        lay(Archive(tmp_path / "a.tar"), target)
    take_back(Archive(tmp_path / "a.tar"), target)


@pytest.mark.parametrize(
    "pieces",
    [
        [extended(record(b"SCHILY.xattr.user.", b"")), header(b"x")],
        [extended(record(b"SCHILY.xattr.user.a", b"")), header(b"x", b"6")],
        [extended(record(b"SCHILY.xattr.system.posix_acl_access", b"x")), header(b"x")],
        [extended(records(GNU__sparse__size=b"%d" % (2**63 - 1))), header(b"x")],
    ],
)
def test_what_no_file_system_takes(tmp_path: Path, target: Path, pieces: list[bytes]) -> None:
    """Found out too late to leave no trace; taking it back does."""
    archive = write(tmp_path, FILE, *pieces, END)
    with pytest.raises(Unfit, match="cannot restore 'x': "):
        lay(archive, target)
    take_back(archive, target)
    assert os.listdir(target) == []


# What is there already


def test_a_file_is_replaced_never_written_into(tmp_path: Path, target: Path, outside: Path) -> None:
    archive = write(
        tmp_path, member(b"linked", b"new"), member(b"symlinked", b"new"),
        header(b"link", b"2", target=b"linked"), header(b"fifo", b"6"),
        header(b"again", b"1", target=b"linked"), END,
    )  # fmt: skip
    (target / "linked").hardlink_to(outside / "file")
    (target / "symlinked").symlink_to(outside / "file")
    (target / "link").symlink_to(outside)
    (target / "fifo").hardlink_to(outside / "file")
    (target / "again").symlink_to(outside / "file")
    lay(archive, target)
    assert (outside / "file").read_text() == SECRET
    assert [(target / name).read_text() for name in ("linked", "symlinked")] == ["new", "new"]
    assert not (target / "symlinked").is_symlink()
    assert os.readlink(target / "link") == "linked"
    assert stat.S_ISFIFO((target / "fifo").lstat().st_mode)
    assert (target / "again").samefile(target / "linked")


def test_a_link_in_the_place_of_a_folder_is_not_followed(
    tmp_path: Path, target: Path, outside: Path
) -> None:
    archive = write(tmp_path, FOLDER, member(b"d/file", b"new"), END)
    (target / "d").symlink_to(outside)
    with pytest.raises(Unfit, match="cannot restore 'd'"):
        lay(archive, target)
    take_back(archive, target)
    assert (outside / "file").read_text() == SECRET
    assert (target / "d").is_symlink()


def test_what_else_is_there_stays(tmp_path: Path, target: Path) -> None:
    archive = write(tmp_path, header(b"./", b"5"), FOLDER, member(b"d/a", b"new"), END)
    (target / "d").mkdir()
    (target / "d" / "other").write_text("other's")
    (target / "other").write_text("other's")
    target.chmod(0o1777)
    lay(archive, target)
    assert sorted(os.listdir(target / "d")) == ["a", "other"]
    assert target.stat().st_mode & 0o7777 == 0o1777, "a volume's own attributes are the pod's"
    take_back(archive, target)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == [
        "d", "d/other", "other",
    ]  # fmt: skip


def test_a_file_that_is_swapped_before_it_gets_another_name(
    tmp_path: Path, target: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write(tmp_path, FILE, header(b"g", b"1", target=b"f"), END)
    pin = laying._pin

    def swapped(name: str, folder: int) -> int:
        (target / "f").unlink()
        (target / "f").hardlink_to(outside / "file")
        return pin(name, folder)

    monkeypatch.setattr(laying, "_pin", swapped)
    with pytest.raises(Unfit, match="f was replaced while"):
        lay(archive, target)
    assert (outside / "file").stat().st_nlink == 2, "no third name"


def test_a_link_that_is_swapped_before_it_gets_its_owner(
    tmp_path: Path, target: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write(tmp_path, header(b"l", b"2", target=b"x", uid=b"0000007\0"), END)
    pin = laying._pin

    def swapped(name: str, folder: int) -> int:
        (target / name).unlink()
        (target / name).hardlink_to(outside / "file")
        return pin(name, folder)

    monkeypatch.setattr(laying, "_pin", swapped)
    with pytest.raises(Unfit, match="l was replaced while"):
        lay(archive, target)
    assert (outside / "file").stat().st_uid == 0


# Taking it back


def test_what_a_killed_extraction_has_left(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at every rename: what is there by then, and the hidden file, go."""
    archive = write(
        tmp_path, FOLDER, member(b"d/a", b"new"), header(b"d/b", b"6"), header(b"d/e/", b"5"),
        header(b"d/e/c", b"1", target=b"d/a"), FILE, END,
    )  # fmt: skip
    rename, unlink = os.rename, os.unlink
    for survived in range(4):
        left = [survived]

        def killed(*args: object, _left: list[int] = left, **more: object) -> None:
            if not _left[0]:
                raise KeyboardInterrupt
            _left[0] -= 1
            rename(*args, **more)  # type: ignore[arg-type]

        (target / ".thaw").touch()
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", killed)
            patched.setattr(os, "unlink", lambda *_a, **_k: None)
            with pytest.raises(KeyboardInterrupt):
                lay(archive, target)
        assert any(path.name.startswith(".thaw-") for path in target.rglob("*"))
        take_back(archive, target)
        assert os.listdir(target) == [".thaw"]
    assert os.unlink is unlink


def test_taken_back_twice_and_never_laid(tmp_path: Path, target: Path) -> None:
    archive = write(tmp_path, FOLDER, member(b"d/a", b"new"), END)
    (target / "theirs").touch()
    take_back(archive, target)
    lay(archive, target)
    for _ in range(2):
        take_back(archive, target)
        assert os.listdir(target) == ["theirs"]


def test_what_was_refused_has_put_nothing_there(tmp_path: Path, target: Path) -> None:
    archive = write(tmp_path, FILE, WHITEOUT, END)
    (target / "f").write_text("theirs")
    with pytest.raises(Unfit):
        lay(archive, target)
    fd = os.open(target, os.O_RDONLY)
    archive.remove_extracted(fd, whiteouts=False)
    os.close(fd)
    assert (target / "f").read_text() == "theirs"


def test_a_folder_in_the_place_of_a_file_stays(tmp_path: Path, target: Path) -> None:
    archive = write(tmp_path, FILE, END)
    (target / "f").mkdir()
    take_back(archive, target)
    assert os.listdir(target) == ["f"]


# Damage

SMALL = b"".join(
    [
        header(b"./", b"5"), FOLDER,
        extended(records(mtime=b"7.5") + record(b"SCHILY.xattr.user.a", b"\0b")),
        member(b"d/a", b"content"),
        header(b"d/b", b"1", target=b"d/a"), header(b"l", b"2", target=b"d/a"), FILE, END,
    ]
)  # fmt: skip


def test_cut_off_anywhere(tmp_path: Path, target: Path) -> None:
    for length in range(0, len(SMALL), 7):
        with pytest.raises(Damaged):
            lay(write(tmp_path, SMALL[:length]), target)
    assert os.listdir(target) == []


def test_any_byte_changed(tmp_path: Path, target: Path, outside: Path) -> None:
    """Refused, or equal but for what no tar has a checksum of: contents and records.

    Those are under the CRC in the snapshot's config; see store.check_whole.
    """
    lay(write(tmp_path, SMALL), target)
    whole = attributes(target)
    for position in (place for place, byte in enumerate(SMALL) if byte or place % 61 == 0):
        shutil.rmtree(target)
        target.mkdir()
        changed = SMALL[:position] + bytes([SMALL[position] ^ 0x15]) + SMALL[position + 1 :]
        archive = write(tmp_path, changed)
        try:
            lay(archive, target)
        except Unfit:
            take_back(archive, target)
            assert os.listdir(target) == [], position
            continue
        found = attributes(target)
        assert set(found) == set(whole), position
        for name in ("d", "l"):
            assert found[name] == whole[name], position
    assert (outside / "file").read_text() == SECRET


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"x", b"L"]),
            st.sampled_from(
                [b"./", b"d", b"d/", b"d/a", b"d/a/b", b"../outside/file", b"/x", b"a", b"d/.."]
            ),
            st.sampled_from([b"d", b"d/a", b"a", b"../outside", b"/etc", b"", b"."]),
            st.binary(max_size=20),
        ),
        max_size=6,
    )
)
def test_any_members(
    tmp_path: Path, target: Path, outside: Path, found: list[tuple[bytes, bytes, bytes, bytes]]
) -> None:
    """Laid and taken back without a trace, or refused; nothing outside is ever touched."""
    pieces = [
        member(name, data if kind in b"0xL" else b"", kind, target=link)
        for kind, name, link, data in found
    ]
    archive = write(tmp_path, *pieces, END)
    try:
        lay(archive, target, whiteouts=True)
    except Unfit:
        pass
    take_back(archive, target)
    assert os.listdir(target) == []
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == SECRET
    assert (outside / "file").stat().st_nlink == 1
