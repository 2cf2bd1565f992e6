"""Locks on the folders of a store, which go with the process that has them.

    FOLDER/lock      a file that whoever makes the folder locks, and leaves in it: "NODE BOOT\n"

It is a file and not the folder itself, as several nodes may have one store: a lock on a folder of
NFS is known to its own node only, one on a file to all (fs/nfs/dir.c has no .flock, fs/nfs/file.c
has). For that, LOCK_SH needs a descriptor to read with, and LOCK_EX one to write with. A folder
without that file, which is none of a store's, is locked itself.

Some network file systems have no locks. Nothing is held there then, and nothing is swept; and on
some they are each node's own: see seized().
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from shim.removal import remove_folder

LOCK = "lock"
DAY = 86400.0  # seconds

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # no link, and no FIFO to wait at


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep a snapshot from being removed while it is restored from.

    Its files are opened one by one, by name and partly by CRIU: all must be of one snapshot. What
    is no folder is held by nobody; opening it says why it is none.
    """
    try:
        fd = hold(path, fcntl.LOCK_SH)  # waits for one that is about to remove it
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.close(fd)


def hold(path: Path, how: int) -> int:
    """Lock a folder that is there; closing the descriptor unlocks it.

    Raises BlockingIOError if told LOCK_NB, OSError for what is no folder.
    """
    fd = _open(path)
    try:
        flock(fd, how)
    except BaseException:
        os.close(fd)
        raise
    return fd


def claim(path: Path, how: int = fcntl.LOCK_EX) -> int:
    """Lock a folder for whoever makes it, and say so in it; closing the descriptor unlocks it.

    Raises FileNotFoundError if the folder is gone: a sweeper may come before the lock. Raises
    BlockingIOError if told LOCK_NB.
    """
    while True:
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        try:
            flock(fd, how)
            if _is(path / LOCK, fd):
                sign(fd)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


@contextmanager
def alone(path: Path, keep: bool = True) -> Iterator[bool]:
    """Nobody else is in the block meanwhile, who locks this file; False if there are no locks.

    The file is made, and stays, unless it is not to be kept.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        try:
            certain = flock(fd, fcntl.LOCK_EX)
            if _is(path, fd):
                yield certain
                if not keep:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(fd)


@contextmanager
def seized(path: Path) -> Iterator[None]:
    """Lock a folder whose maker is dead, to remove it.

    Where locks are each node's own, one that is free says nothing of the makers of other nodes:
    theirs is left alone until nothing in it was touched for a day. Raises BlockingIOError if its
    maker lives, or may live, and OSError where there are no locks.
    """
    with ExitStack() as stack:
        fd = open_folder(path)
        stack.callback(os.close, fd)
        flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of those who have nothing but the folder
        last = touched(path)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        maker = os.pread(lock, 1024, 0)
        ours = _is_ours(maker) or not (maker or _contents(path))
        if not _is(path / LOCK, lock) or not (ours or time.time() - last > DAY):
            raise BlockingIOError(errno.EWOULDBLOCK, "it may be in use on another node", str(path))
        yield


def sign(fd: int) -> None:
    """Note in a lock who has it, if we can write to it."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        node, boot = _identity()
        text = f"{node} {boot}\n".encode()
        os.pwrite(fd, text, 0)
        os.ftruncate(fd, len(text))


def remove_claimed(path: Path) -> None:
    """Remove a folder, last of all what says whose it is: we may be killed before the end."""
    if path.is_symlink() or not path.is_dir():
        remove_folder(str(path))
        return
    for name in set(os.listdir(path)) - {LOCK}:
        remove_folder(str(path / name))
    remove_folder(str(path / LOCK))
    try:
        path.rmdir()
    except OSError as error:
        # Since there is no lock, a sweeper may have it: then it removes the empty folder.
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY) or _contents(path):
            raise


def touched(path: Path) -> float:
    """The last change of anything in a folder, as Unix time; 0.0 if it is gone."""
    last = 0.0
    for place in (
        path,
        *(Path(parent, name) for parent, _, files in os.walk(path) for name in files),
    ):
        with suppress(FileNotFoundError):
            last = max(last, os.lstat(place).st_mtime)
    return last


def flock(fd: int, how: int) -> bool:
    """flock(2); False where there is no such thing. Raises BlockingIOError."""
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def open_folder(path: Path) -> int:
    """A descriptor to lock. Raises OSError for a link and for what is no folder."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _open(path: Path) -> int:
    """What stands for a folder that is there: its lock, or itself."""
    folder = open_folder(path)
    try:
        return _open_lock(folder)
    except FileNotFoundError:
        return os.dup(folder)
    finally:
        os.close(folder)


def _open_lock(folder: int) -> int:
    try:
        return os.open(LOCK, os.O_RDWR | _FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        return os.open(LOCK, os.O_RDONLY | _FLAGS, dir_fd=folder)


def _contents(path: Path) -> set[str]:
    try:
        return set(os.listdir(path)) - {LOCK}
    except FileNotFoundError:
        return set()


def _is(path: Path, fd: int) -> bool:
    """Whether a path still leads to what was opened there."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _identity() -> tuple[str, str]:
    """This node, and this boot of it: two nodes may have one name."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return os.uname().nodename, boot.strip()


def _is_ours(maker: bytes) -> bool:
    """Whether a lock's maker was on this node; in an earlier boot, maybe."""
    node, _, boot = maker.decode(errors="replace").strip().partition(" ")
    return node == _identity()[0] or boot == _identity()[1]
