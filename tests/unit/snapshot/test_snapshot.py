"""What is believed of a folder that somebody else could have written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.host import open_fds
from fakes.snapshots import CONFIG, config, file_of, tar_of, write

from shim.errors import Damaged, Unfit
from shim.snapshot.snapshot import Snapshot, check_whole, open_at, size_of

CONTENTS = {"criu/a.img": b"abc", "index/extents": b"e", "volumes/1.tar.0000": tar_of({})}


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return write(tmp_path / "one", config(volumes=["/dev/shm", "/data"]), CONTENTS)


@pytest.fixture
def whole(one: Path) -> Snapshot:
    return open_at(one)


def test_opened(one: Path, whole: Snapshot) -> None:
    assert (whole.path, whole.id, whole.roots) == (one, "one", (one,))
    assert (whole.criu, whole.index, whole.pages) == (one / "criu", one / "index", (one / "pages",))
    assert whole.difference.base == one / "rootfs.tar"
    assert whole.volume(3).base == one / "volumes" / "3.tar"
    assert (whole.digest, whole.shared, whole.used) == ("", False, 0.0)
    assert whole.created == 1785585600.0
    assert whole.file("criu/a.img") == one / "criu" / "a.img"
    check_whole(whole, skeleton=True)


def test_what_comes_and_goes_meanwhile(
    one: Path, whole: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks, and files that are being written, which are nobody's affair yet."""
    (one / ".draft-x").touch(0o666)
    (one / ".draft-x").chmod(0o666)
    (one / "shared").touch()
    scandir = os.scandir

    def late(folder: Path) -> list[os.DirEntry[str]]:
        found = list(scandir(folder))
        (one / "shared").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(os, "scandir", late)
    check_whole(whole)
    assert not (one / "shared").exists()
    monkeypatch.undo()
    (one / "criu" / ".draft-x").touch()
    (one / "criu" / ".draft-x").chmod(0o666)
    with pytest.raises(Unfit, match="written to by others"):
        check_whole(whole)


def test_the_size_of_what_is_just_going(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = size_of(one)
    monkeypatch.setattr(os, "walk", lambda path: [(str(path), [], ["gone", "config.json"])])
    assert 0 < size_of(one) < before


@pytest.mark.parametrize("created", ["", "yesterday", "2026-13-01T00:00:00Z", "x" * 10_000])
def test_a_time_that_is_none(tmp_path: Path, created: str) -> None:
    assert open_at(write(tmp_path / "one", config(created=created))).created == 0.0


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_others_can_write(one: Path, mode: int) -> None:
    one.chmod(mode)
    with pytest.raises(Unfit, match="written to by others") as caught:
        open_at(one)
    assert "chown root" in caught.value.hint


def test_others_can_read(one: Path) -> None:
    one.chmod(0o755)
    check_whole(open_at(one), skeleton=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")
def test_somebody_elses(one: Path) -> None:
    os.chown(one, 12345, 0)
    with pytest.raises(Unfit, match="written to by others"):
        open_at(one)


def test_what_is_no_folder(one: Path, tmp_path: Path) -> None:
    (tmp_path / "two").symlink_to(one)
    (tmp_path / "three").touch()
    for name in ("two", "three"):
        with pytest.raises(Unfit, match="is not a folder"):
            open_at(tmp_path / name)
    with pytest.raises(Unfit, match="cannot read"):
        open_at(tmp_path / "four")


def link(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


def large(path: Path) -> None:
    with open(path, "a") as file:
        file.write(" " * (8 << 20))


def other(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def swap(path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return swap


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(Path.unlink, id="gone"),
        pytest.param(link, id="link"),
        pytest.param(large, id="large"),
        pytest.param(other(Path.mkdir), id="folder"),
        pytest.param(other(os.mkfifo), id="fifo"),
        pytest.param(other(lambda p: p.symlink_to("/dev/zero")), id="device"),
        pytest.param(other(Path.touch), id="empty"),
        pytest.param(lambda p: os.truncate(p, 100), id="truncated"),
        pytest.param(lambda p: p.chmod(0o666), id="writable"),
    ],
)
def test_a_config_that_is_none(one: Path, spoil: Callable[[Path], object]) -> None:
    spoil(one / "config.json")
    before = open_fds()
    with pytest.raises(Unfit, match=r"config\.json"):
        open_at(one)
    assert open_fds(before) == set()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def longer(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


FILES = ["criu/a.img", "index/extents", "rootfs.tar.0000", "volumes/1.tar.0000",
         "pages/pages-1.img.0000"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "is missing, it had"),
        (longer, "bytes, it had"),
        (lambda p: os.truncate(p, 0), "has 0 bytes, it had"),
        (link, "is no regular file"),
        (other(os.mkfifo), "is no regular file"),
        (other(Path.mkdir), "is no regular file"),
        (other(lambda p: p.symlink_to("/dev/zero")), "is no regular file"),
        (lambda p: p.chmod(0o620), "can be written to by others"),
        (lambda p: os.chown(p, 12345, 0), "can be written to by others"),
    ],
)
def test_a_file_that_is_not_what_it_was(
    whole: Snapshot, name: str, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(whole.path / name)
    for sums in (True, False):
        with pytest.raises(Unfit, match=words) as caught:
            check_whole(whole, sums=sums)
        assert name.rpartition("/")[2] in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize("name", FILES[:4])
def test_a_byte_that_was_flipped(whole: Snapshot, name: str) -> None:
    flip(whole.path / name)
    with pytest.raises(Damaged, match="is not what it was") as caught:
        check_whole(whole, skeleton=True)
    assert "thaw rm" in caught.value.hint
    check_whole(whole, sums=False)
    if name.startswith(("criu", "index")):
        check_whole(whole)  # the index' own checksums cover it
    else:
        with pytest.raises(Damaged):
            check_whole(whole)


@pytest.mark.parametrize("name", ["criu", "index", "pages", "volumes"])
def test_folders(whole: Snapshot, name: str) -> None:
    (whole.path / name).chmod(0o770)
    with pytest.raises(Unfit, match=f"{name} can be written to"):
        check_whole(whole)
    (whole.path / name).chmod(0o700)
    link(whole.path / name)
    with pytest.raises(Unfit, match=f"{name} is no regular file"):
        check_whole(whole)


def test_what_should_not_be_there(whole: Snapshot) -> None:
    """CRIU opens images by name: one more could mean something to it."""
    os.mkfifo(whole.path / "criu" / "tty-info.img")
    with pytest.raises(Unfit, match=r"tty-info\.img is no regular"):
        check_whole(whole)
    (whole.path / "criu" / "tty-info.img").unlink()
    for name in ("blobs", "log"):
        (whole.path / name).mkdir()
        (whole.path / name / "link").symlink_to("/")
    check_whole(whole, skeleton=True)
    (whole.path / "criu" / "a" / "b").mkdir(parents=True)
    with pytest.raises(Unfit, match="does not belong to a snapshot"):
        check_whole(whole)


@pytest.mark.parametrize(
    ("what", "missing"),
    [
        (config(volumes=["/a", "/b"]), r"volumes/1\.tar\.0000 is missing"),
        (config(files={}), r"volumes/0\.tar\.0000 is missing"),
        (config(files={}, volumes=[]), r"rootfs\.tar\.0000 is missing"),
    ],
)
def test_a_config_that_does_not_list_what_it_promises(
    tmp_path: Path, what: object, missing: str
) -> None:
    with pytest.raises(Damaged, match=missing):
        check_whole(open_at(write(tmp_path / "one", what)))  # type: ignore[arg-type]


def test_what_was_never_there_need_not_be(tmp_path: Path) -> None:
    what = config(difference=False, volumes=[], files={"criu/a.img": file_of(b"x")}, pages={})
    snapshot = open_at(write(tmp_path / "one", what))
    assert not snapshot.difference.exists()
    check_whole(snapshot, skeleton=True)


def test_images_elsewhere(tmp_path: Path) -> None:
    """A checkpoint that containerd asked for: pages files are whole, and others lie around."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "core-1.img").write_bytes(b"xxxx")
    (images / "pages-1.img").write_bytes(b"x" * 10)
    (images / "dump.log").symlink_to("/dev/null")
    files = {name: file for name, file in CONFIG.files.items() if "criu" not in name}
    ours = write(tmp_path / "ours", replace(CONFIG, files=files, pages={}))
    listed = {**files, "criu/core-1.img": file_of(b"xxxx")}
    text = replace(CONFIG, files=listed, pages={"pages-1.img": 10}).to_json()
    (ours / "config.json").write_text(text)
    snapshot = open_at(ours, images=images)
    assert (snapshot.criu, snapshot.pages) == (images, (images,))
    check_whole(snapshot, skeleton=True)
    (images / "core-1.img").write_bytes(b"xxxy")
    with pytest.raises(Damaged, match=r"images/core-1\.img is not what it was"):
        check_whole(snapshot, skeleton=True)
    os.truncate(images / "pages-1.img", 9)
    with pytest.raises(Damaged, match=r"pages-1\.img has 9 bytes, it had 10"):
        check_whole(snapshot)


def test_size_of(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"x" * 8192)
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 30)
    before = size_of(tmp_path)
    assert 8192 <= before < 1 << 20, "bytes on disk"
    os.link(tmp_path / "inner" / "file", tmp_path / "again")
    assert size_of(tmp_path) == before, "a blob is a further name of a file"
    assert size_of(tmp_path / "gone") == 0
