"""Several nodes with one store: what one has, another neither sweeps nor removes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest
from fakes.snapshots import make, write

from shim.errors import FailedPrecondition
from shim.snapshot import locks, retention
from shim.snapshot.store import Store, held

HERE = ("here", "boot-1")
THERE = ("there", "boot-2")


class Nodes:
    """Which node we are, and what its kernel knows of the others' locks."""

    def __init__(self) -> None:
        self.us = HERE
        self.shared = True  # locks of files are every node's; those of folders never are
        self._flock = fcntl.flock
        self._holders: dict[int, tuple[str, str]] = {}

    def identity(self) -> tuple[str, str]:
        return self.us

    def flock(self, fd: int, how: int) -> None:
        info = os.fstat(fd)
        alone = stat.S_ISDIR(info.st_mode) or not self.shared
        # Of another node's we know nothing.
        if not alone or self._holders.setdefault(info.st_ino, self.us) == self.us:
            self._flock(fd, how)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    found = Nodes()
    monkeypatch.setattr(fcntl, "flock", found.flock)
    monkeypatch.setattr(locks, "_identity", found.identity)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def age(folder: Path, days: float) -> None:
    for path in (*folder.rglob("*"), folder):
        then = path.lstat().st_mtime - days * locks.DAY
        os.utime(path, (then, then))


@pytest.mark.parametrize("shared", [True, False])
def test_another_nodes_draft_is_not_swept(nodes: Nodes, store: Store, shared: bool) -> None:
    nodes.shared = shared
    with store.draft("one") as draft:
        write(draft.path)
        nodes.us = THERE
        store.sweep()
        make(store, "two")
        nodes.us = HERE
    assert sorted(store.names()) == ["one", "two"]


def test_what_another_node_restores_from_is_not_removed(nodes: Nodes, store: Store) -> None:
    id = make(store, None)
    with held(store.path_of(id)):
        nodes.us = THERE
        with pytest.raises(FailedPrecondition):
            store.remove(id)
        assert retention._busy(store.path_of(id))
    store.remove(id)
    assert store.ids() == []


@pytest.fixture
def abandoned(nodes: Nodes, store: Store) -> Path:
    """A draft of another node, which died."""
    nodes.us = THERE
    store.folder.mkdir(mode=0o700)
    _id, lock = store._begin()
    os.close(lock)
    nodes.us = HERE
    (folder,) = store.folder.glob(".draft-*")
    (folder / "file").touch()
    return folder


def test_another_nodes_draft_is_swept_after_a_day(store: Store, abandoned: Path) -> None:
    store.sweep()
    age(abandoned, 0.9)
    store.sweep()
    assert abandoned.exists(), "where locks are each node's own it may be in use"
    age(abandoned, 0.2)
    store.sweep()
    assert not abandoned.exists()


@pytest.mark.parametrize("us", [("there", "boot-3"), ("renamed", "boot-2")])
def test_ours_is_swept_at_once(
    nodes: Nodes, store: Store, abandoned: Path, us: tuple[str, str]
) -> None:
    """Of this node, whichever boot; of this boot, whatever the node is called by now."""
    nodes.us = us
    store.sweep()
    assert not abandoned.exists()


def test_a_draft_of_nobody_knows_whom(store: Store) -> None:
    folder = store.folder / ".draft-x"
    folder.mkdir(parents=True)
    (folder / "file").touch()
    store.sweep()
    assert folder.exists()
    age(folder, 1.1)
    store.sweep()
    assert not folder.exists()


def test_a_sweeper_that_comes_before_the_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone when its maker has the lock: another one is begun."""
    flock = fcntl.flock
    swept: list[Path] = []

    def late(fd: int, how: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.parent.name.startswith(".draft-") and not swept:
            swept.append(path.parent)
            store.sweep()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with store.draft("one") as draft:
        assert swept
        assert draft.path.exists()
        assert draft.path != swept[0]
        write(draft.path)
    assert not swept[0].exists()
    assert store.names() == {"one": draft.id}


def test_a_sweeper_that_comes_when_the_lock_is_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finishes what a remover has nearly done; neither minds the other."""
    id = make(store, "one")
    rmdir, swept = Path.rmdir, []

    def late(path: Path) -> None:
        monkeypatch.undo()
        store.sweep()
        swept.append(path)
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", late)
    store.remove(id)
    assert swept
    store.sweep()
    assert list(store.folder.glob(".draft-*")) == []


def test_the_lock_of_a_snapshot(store: Store) -> None:
    """A file of root's, of which the artifact knows nothing."""
    lock = store.path_of(make(store, "one")) / "lock"
    assert lock.stat().st_mode == stat.S_IFREG | 0o600
    assert lock.read_text() == " ".join(locks._identity()) + "\n"


def test_a_lock_that_cannot_be_written_is_held_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a store that is mounted read-only."""
    path = store.path_of(make(store, "one"))
    real = os.open

    def read_only(place: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(place, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", read_only)
    with held(path):
        monkeypatch.undo()
        with pytest.raises(BlockingIOError):
            locks.hold(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(locks.hold(path, fcntl.LOCK_EX | fcntl.LOCK_NB))


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_has_the_place_of_a_lock(store: Store, tmp_path: Path, kind: str) -> None:
    """It neither leads out of the store nor keeps anybody waiting."""
    id = make(store, "one")
    lock = store.path_of(id) / "lock"
    lock.unlink()
    if kind == "link":
        lock.symlink_to(tmp_path / "precious")
    else:
        os.mkfifo(lock) if kind == "fifo" else lock.mkdir()
    with held(store.path_of(id)):
        pass
    assert not (tmp_path / "precious").exists()


def test_ages_of_what_is_just_going(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(tmp_path, (5, 5))
    monkeypatch.setattr(os, "walk", lambda path: [(str(path), [], ["gone"])])
    assert locks.touched(tmp_path) == 5
    assert locks.touched(tmp_path / "gone") == 0
