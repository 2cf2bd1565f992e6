"""Names, drafts and what is believed of a folder that somebody else could have written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.host import open_fds
from fakes.snapshots import CONFIG, config, write

from shim.annotations import NAME_LENGTH
from shim.errors import AlreadyExists, BadName, NoSuchSnapshot, Unfit
from shim.snapshot.store import Snapshot, Store, check_whole, images_in, open_at, size_of

CHECKOUT = Path(__file__).resolve().parents[3]
MAKER = """
import sys
from shim.snapshot.store import Store
with Store(sys.argv[1]).draft("slow") as draft:
    (draft.path / "config.json").write_text("half")
    print(draft.path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "snapshots"))


@pytest.fixture
def one(store: Store) -> Path:
    """A whole snapshot named `one`."""
    path = store.folder / "one"
    store.folder.mkdir(mode=0o700)
    write_snapshot(path)
    return path


def write_snapshot(folder: Path, **changes: Any) -> None:
    (write(folder, config(**changes)) if changes else write(folder)).chmod(0o700)


def make(store: Store, name: str) -> None:
    with store.draft(name) as draft:
        write_snapshot(draft.path)


def hidden(store: Store) -> list[str]:
    return [name for name in os.listdir(store.folder) if name not in store.names()]


class Maker:
    """Another process that is in the middle of making the snapshot `slow`."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", MAKER, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
            text=True,
        )
        assert self._process.stdout is not None
        self.draft = Path(self._process.stdout.readline().strip())

    def kill(self) -> None:
        self._process.kill()
        assert self._process.wait() == -signal.SIGKILL
        self.close()

    def finish(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait() == 0
        self.close()

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def maker(store: Store) -> Iterator[Maker]:
    made = Maker(store.folder)
    yield made
    if made._process.poll() is None:
        made.kill()


# Names


@pytest.mark.parametrize(
    "name",
    [
        *("", "auto", "a/b", "../one", "/one", "a@b", "a:b", ".one", "-a", "_a", "A", "ö", "a b"),
        *("a\n", "a\0b", ".draft-0", "a" * (NAME_LENGTH + 1)),
    ],
)
def test_bad_names(store: Store, one: Path, name: str) -> None:
    for use in (store.open, store.remove, lambda name: make(store, name)):
        with pytest.raises(BadName):
            use(name)
    assert store.names() == ["one"]
    assert hidden(store) == []


def test_good_names(store: Store) -> None:
    names = ["0", "a.b_c-d", "auto2", "a" * NAME_LENGTH]
    for name in names:
        make(store, name)
        assert store.open(name).config == CONFIG
    assert store.names() == sorted(names)


def test_names_are_sorted_and_nothing_but_names(store: Store, one: Path) -> None:
    assert Store(str(one / "gone")).names() == []
    for name in ("b", "a", ".draft-1", "Upper", "auto"):
        (store.folder / name).mkdir()
    assert store.names() == ["a", "b", "one"]


def test_there_is_none(store: Store, one: Path) -> None:
    with pytest.raises(NoSuchSnapshot, match="no snapshot named two"):
        store.open("two")
    with pytest.raises(NoSuchSnapshot):
        store.remove("two")
    with pytest.raises(NoSuchSnapshot):
        Store(str(one / "gone")).open("one")


# Making one


def test_a_draft_appears_whole_and_at_once(store: Store) -> None:
    with store.draft("one") as draft:
        assert draft.path.stat().st_mode & 0o777 == 0o700
        write_snapshot(draft.path)
        inode = draft.path.stat().st_ino
        assert store.names() == []
        with pytest.raises(NoSuchSnapshot):
            store.open("one")
    assert store.open("one").config == CONFIG
    assert (store.folder / "one").stat().st_ino == inode, "one rename"
    assert hidden(store) == []
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_everything_is_on_the_disk_before_it_has_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{fd}")).name, store.names()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    with store.draft("one") as draft:
        write_snapshot(draft.path)
        path = draft.path
    contents = {file.name for file in (store.folder / "one").rglob("*")} | {path.name}
    assert {name for name, names in synced if not names} == contents
    assert synced[-1] == (store.folder.name, ["one"]), "and the rename too"


def test_published_before_its_maker_is_done(store: Store) -> None:
    with store.draft("one") as draft:
        write_snapshot(draft.path)
        draft.publish()
        draft.publish()
        assert store.open("one").config == CONFIG
        assert draft.path == store.folder / "one"
    assert store.names() == ["one"]
    assert hidden(store) == []


@pytest.mark.parametrize("publish", [False, True])
def test_a_maker_that_fails_leaves_nothing(store: Store, publish: bool) -> None:
    def fail() -> None:
        with store.draft("one") as draft:
            write_snapshot(draft.path)
            if publish:
                draft.publish()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(store.folder) == []


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_name_that_is_taken(store: Store, one: Path, kind: str) -> None:
    shutil.rmtree(one)
    if kind == "folder":
        write_snapshot(one)
    elif kind == "file":
        one.touch()
    else:
        one.symlink_to("/nowhere")
    begun = []

    def begin() -> None:
        with store.draft("one") as draft:
            begun.append(draft.path)

    with pytest.raises(AlreadyExists, match="one"):
        begin()
    assert begun == [], "it is said before anything is dumped"
    assert os.listdir(store.folder) == ["one"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_name_that_is_taken_meanwhile(store: Store, kind: str) -> None:
    def make_late() -> None:
        with store.draft("one") as draft:
            write_snapshot(draft.path)
            if kind == "folder":
                make(store, "one")
            else:
                (store.folder / "one").write_text("mine")

    with pytest.raises(AlreadyExists, match="thaw rm one"):
        make_late()
    assert os.listdir(store.folder) == ["one"]
    if kind == "folder":
        assert store.open("one").config == CONFIG


def test_a_store_that_others_can_write_to(store: Store) -> None:
    store.folder.mkdir()
    store.folder.chmod(0o777)
    with pytest.raises(Unfit, match="written to by others"):
        make(store, "one")
    write_snapshot(store.folder / "one")
    with pytest.raises(Unfit, match="written to by others"):
        store.open("one")


def test_what_a_killed_maker_leaves(store: Store, maker: Maker) -> None:
    assert maker.draft.parent == store.folder
    maker.kill()
    assert store.names() == []
    with pytest.raises(NoSuchSnapshot):
        store.open("slow")
    assert (maker.draft / "config.json").exists(), "nobody has looked yet"
    make(store, "other")
    assert os.listdir(store.folder) == ["other"], "swept by the next"


def test_what_a_living_maker_has_is_its_own(store: Store, maker: Maker) -> None:
    make(store, "other")
    assert (maker.draft / "config.json").read_text() == "half"
    maker.finish()
    assert store.names() == ["other", "slow"]


def test_things_that_look_like_drafts(store: Store, one: Path, tmp_path: Path) -> None:
    """A link is not followed, and nothing of it hinders."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (store.folder / ".draft-1").symlink_to(tmp_path / "precious")
    (store.folder / ".draft-2").touch()
    make(store, "two")
    assert (tmp_path / "precious" / "file").exists()


# Removing one


def test_removed(store: Store, one: Path) -> None:
    make(store, "two")
    store.remove("one")
    assert os.listdir(store.folder) == ["two"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_only_has_the_name_of_one_is_removed_too(
    store: Store, one: Path, tmp_path: Path, kind: str
) -> None:
    one.rename(tmp_path / "kept")
    one.touch() if kind == "file" else one.symlink_to(tmp_path / "kept")
    store.remove("one")
    assert os.listdir(store.folder) == []
    assert (tmp_path / "kept" / "config.json").exists()


# Believing one


def test_opened(store: Store, one: Path) -> None:
    snapshot = store.open("one")
    assert snapshot.config == CONFIG
    assert (snapshot.path, snapshot.criu) == (one, one / "criu")
    assert (snapshot.difference, snapshot.volume(3)) == (one / "rootfs", one / "volumes" / "3")


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_others_can_write(store: Store, one: Path, mode: int) -> None:
    one.chmod(mode)
    with pytest.raises(Unfit, match="written to by others") as caught:
        store.open("one")
    assert "chown root" in caught.value.hint


def test_others_can_read(store: Store, one: Path) -> None:
    one.chmod(0o755)
    assert store.open("one").config == CONFIG


@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")
def test_somebody_elses(store: Store, one: Path) -> None:
    os.chown(one, 12345, 0)
    with pytest.raises(Unfit, match="written to by others"):
        store.open("one")


def test_a_link_to_a_snapshot(store: Store, one: Path) -> None:
    (store.folder / "two").symlink_to(one)
    with pytest.raises(Unfit, match="is not a folder"):
        store.open("two")
    (store.folder / "three").touch()
    with pytest.raises(Unfit, match="is not a folder"):
        open_at(store.folder / "three")


def link(config: Path) -> None:
    target = config.parent.parent / "elsewhere"
    config.rename(target)
    config.symlink_to(target)


def large(config: Path) -> None:
    with open(config, "a") as file:
        file.write(" " * (8 << 20))


def other(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(config: Path) -> None:
        config.unlink()
        make(config)

    return replace


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
    ],
)
def test_a_config_that_is_none(store: Store, one: Path, spoil: Callable[[Path], object]) -> None:
    spoil(one / "config.json")
    before = open_fds()
    with pytest.raises(Unfit, match=r"config\.json"):
        store.open("one")
    assert open_fds(before) == set()


def test_images_in(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(b"123")
    (tmp_path / "b.img").symlink_to("a.img")
    (tmp_path / "c.img").mkdir()
    (tmp_path / "dump.log").touch()
    assert images_in(tmp_path) == {"a.img": 3}


@pytest.fixture
def whole(store: Store) -> Snapshot:
    store.folder.mkdir(mode=0o700)
    images = {"a.img": 3, "b.img": 5}
    write_snapshot(store.folder / "one", images=images, volumes=["/dev/shm", "/data"])
    return store.open("one")


def test_whole(whole: Snapshot) -> None:
    (whole.criu / "more.img").touch()
    check_whole(whole, whole.criu)


def to_link(path: Path) -> None:
    path.rename(path.parent / "moved")
    path.symlink_to(path.parent / "moved")


@pytest.mark.parametrize(
    ("path", "spoil", "words"),
    [
        ("criu/b.img", lambda p: os.truncate(p, 4), "b.img has 4 bytes, it had 5"),
        ("criu/b.img", lambda p: os.truncate(p, 6), "b.img has 6 bytes, it had 5"),
        ("criu/a.img", Path.unlink, "a.img is missing, it had 3"),
        ("criu/a.img", to_link, "a.img is missing, it had 3"),
        ("criu", shutil.rmtree, "cannot read"),
        ("rootfs", Path.rmdir, "rootfs is missing"),
        ("rootfs", to_link, "rootfs is missing"),
        ("volumes/1", Path.rmdir, "volumes/1 is missing"),
        ("volumes", shutil.rmtree, "volumes/0 is missing"),
    ],
)
def test_not_whole(whole: Snapshot, path: str, spoil: Callable[[Path], object], words: str) -> None:
    spoil(whole.path / path)
    with pytest.raises(Unfit, match=words) as caught:
        check_whole(whole, whole.criu)
    assert "thaw rm" in caught.value.hint


def test_what_was_never_there_need_not_be(store: Store) -> None:
    store.folder.mkdir(mode=0o700)
    write_snapshot(store.folder / "one", difference=False)
    snapshot = store.open("one")
    assert not snapshot.difference.exists()
    check_whole(snapshot, snapshot.criu)


def test_size_of(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"x" * 8192)
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 30)
    assert size_of(tmp_path) >= 8192
    assert size_of(tmp_path) < 1 << 20, "bytes on disk"
    assert size_of(tmp_path / "gone") == 0
