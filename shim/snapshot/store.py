"""The folder of snapshots: names in, snapshots out, and how one comes to be.

A draft is a folder whose name no snapshot can have, held by a lock as long as its maker lives. It
is written to disk whole and then renamed: readers see a complete snapshot or none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shim.annotations import check_name
from shim.errors import AlreadyExists, BadName, NoSuchSnapshot, Unfit
from shim.removal import remove_folder
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.replacing import sync
from shim.snapshot.tree import open_file

CONFIG = "config.json"
_DRAFT = ".draft-"
_LARGEST_CONFIG = 8 << 20  # bytes
DAMAGED = "the snapshot is damaged: remove it with `thaw rm` and make it again"


class Snapshot:
    """A folder that holds a snapshot, opened and believed as far as its owner goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.criu = path / "criu"
        self.difference = path / "rootfs"
        self.config = _read_config(path / CONFIG)

    def volume(self, number: int) -> Path:
        """The saved contents of one volume, as numbered in the config."""
        return self.path / "volumes" / str(number)


class Store:
    """One folder of snapshots."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def open(self, name: str) -> Snapshot:
        """The snapshot of that name. Raises BadName, NoSuchSnapshot or Unfit."""
        path = self.folder / check_name(name)
        if not os.path.lexists(path):
            raise NoSuchSnapshot(f"no snapshot named {name} in {self.folder}", hint="see `thaw ls`")
        check_owner(self.folder)
        return open_at(path)

    def names(self) -> list[str]:
        """The names of all snapshots, sorted."""
        try:
            entries = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return sorted(name for name in entries if _is_name(name))

    def remove(self, name: str) -> None:
        """Delete a snapshot: first its name goes, then its contents."""
        path = self.folder / check_name(name)
        if path.is_symlink() or path.is_file():  # no snapshot, but in the place of one
            path.unlink()
            return
        try:
            lock = _lock(path)  # or a sweeper would remove it at the same time
        except FileNotFoundError:
            raise NoSuchSnapshot(f"no snapshot named {name} in {self.folder}") from None
        try:
            _bury(path)
        finally:
            os.close(lock)

    @contextmanager
    def draft(self, name: str) -> Iterator[Draft]:
        """A folder to write a snapshot into; it is published at the end, if not before.

        Raises AlreadyExists if the name is taken. On any error the folder is removed.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(self.folder)
        final = self.folder / check_name(name)
        self._refuse_taken(final)
        self._sweep()
        path, lock = self._begin()
        draft = Draft(path, final)
        try:
            yield draft
            draft.publish()
        except BaseException:
            _bury(draft.path)
            raise
        finally:
            os.close(lock)

    def _refuse_taken(self, path: Path) -> None:
        if os.path.lexists(path):
            raise _taken(path)

    def _begin(self) -> tuple[Path, int]:
        """A new folder for a draft, and its lock. A sweeper may come before the lock."""
        while True:
            path = self.folder / _hidden()
            path.mkdir(mode=0o700)
            try:
                lock = _lock(path)
            except FileNotFoundError:
                continue
            if path.exists():
                return path, lock
            os.close(lock)

    def _sweep(self) -> None:
        """Remove the drafts of makers that died: their locks are free."""
        for path in self.folder.glob(f"{_DRAFT}*"):
            try:
                lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_folder(str(path))
            except OSError:  # its maker lives, or another sweeper was quicker
                pass
            finally:
                os.close(lock)


class Draft:
    """A snapshot that is being written, in the folder `path`."""

    def __init__(self, path: Path, final: Path) -> None:
        self.path = path
        self._final = final

    def publish(self) -> None:
        """Bring it to the disk and give it its name, by one rename; once is enough."""
        if self.path == self._final:
            return
        _sync(self.path)
        try:
            self.path.rename(self._final)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _taken(self._final) from error
            raise
        self.path = self._final
        sync(self._final.parent)


def _hidden() -> str:
    """A name that no snapshot can have."""
    return f"{_DRAFT}{os.urandom(6).hex()}"


def _lock(path: Path) -> int:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _bury(path: Path) -> None:
    """Remove a folder: first its name goes, so that nobody finds half a snapshot under it."""
    grave = path.parent / _hidden()
    path.rename(grave)
    remove_folder(str(grave))


def _taken(path: Path) -> AlreadyExists:
    return AlreadyExists(
        f"a snapshot named {path.name} exists", hint=f"`thaw rm {path.name}` removes it"
    )


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep a snapshot from being removed, or indexed anew, while it is restored from.

    Its files are opened one by one, by name and partly by CRIU: all must be of one snapshot.
    What is no folder is held by nobody; opening it says why it is none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)  # waits for one that is about to remove it
        yield
    finally:
        os.close(fd)


def open_at(path: Path) -> Snapshot:
    """The snapshot in a folder, wherever that is. Raises Unfit unless it is root's alone."""
    check_owner(path)
    return Snapshot(path)


def check_owner(path: Path) -> None:
    """Raise Unfit unless `path` is a folder of root's (or ours) that nobody else can write to."""
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode):
        raise Unfit(f"{path} is not a folder", hint="a snapshot is a folder, and no link to one")
    if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
        raise Unfit(
            f"{path} can be written to by others than root",
            hint="whoever can write a snapshot is root on this node: chown root, chmod go-w",
        )


def _read_config(path: Path) -> SnapshotConfig:
    try:
        fd = open_file(path)
    except OSError as error:
        raise Unfit(f"cannot read {path}: {error.strerror}", hint="no snapshot of Thaw") from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST_CONFIG:
            raise Unfit(f"{path} is no config document", hint="the snapshot is damaged")
        with open(fd, "rb", closefd=False) as file:
            return SnapshotConfig.from_json(file.read(_LARGEST_CONFIG), str(path))
    finally:
        os.close(fd)


def _is_name(entry: str) -> bool:
    try:
        check_name(entry)
    except BadName:
        return False
    return True


def _sync(folder: Path) -> None:
    """Bring every file and folder below `folder` to the disk, so that the rename comes last."""
    for parent, _folders, files in os.walk(folder):
        for name in files:
            path = os.path.join(parent, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                sync(Path(path))
        sync(Path(parent))


def images_in(folder: Path) -> dict[str, int]:
    """The length of each of CRIU's images in a folder, by name."""
    found = {}
    for entry in os.scandir(folder):
        if entry.name.endswith(".img") and entry.is_file(follow_symlinks=False):
            found[entry.name] = entry.stat(follow_symlinks=False).st_size
    return found


def check_whole(snapshot: Snapshot, images: Path) -> None:
    """Raise Unfit unless everything is there and CRIU's images are as long as they were."""
    _check_images(images, snapshot.config.images)
    folders = [snapshot.volume(number) for number in range(len(snapshot.config.volumes))]
    if snapshot.config.difference:
        folders.append(snapshot.difference)
    for folder in folders:
        if not stat.S_ISDIR(_mode(folder)):
            raise Unfit(f"{folder} is missing", hint=DAMAGED)


def _mode(path: Path) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def _check_images(folder: Path, wanted: dict[str, int]) -> None:
    # CRIU does not look: it waits for ever for pages that a shortened file does not hold.
    try:
        found = images_in(folder)
    except OSError as error:
        raise Unfit(f"cannot read {folder}: {error.strerror}", hint=DAMAGED) from error
    for name, size in sorted(wanted.items()):
        if found.get(name) != size:
            now = f"has {found[name]} bytes" if name in found else "is missing"
            raise Unfit(f"{folder}/{name} {now}, it had {size}", hint=DAMAGED)


def size_of(folder: Path) -> int:
    """Bytes on disk below `folder`."""
    total = 0
    for parent, _folders, files in os.walk(folder):
        total += sum(os.lstat(os.path.join(parent, name)).st_blocks for name in files) * 512
    return total
