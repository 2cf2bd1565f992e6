"""Copying a tree of files that somebody else can write to while we read or write it.

A volume is shared with the pod's other containers. A path that was checked can be swapped for a
link before it is used, so nothing here follows a link or walks a path twice: every step is made
relative to an open directory, with O_NOFOLLOW. (`cp -a` is used where nobody else has access.)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CHUNK = 1 << 30
_HIDDEN = ".thaw-"  # begins the names of files that are being written
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_tree(source: int, target: int) -> int:
    """Copy what is in the directory `source` into the directory `target`, both descriptors.

    Regular files (holes kept), directories, links, FIFOs and hard links among them are copied
    with owner, mode, times and extended attributes; sockets and devices are left out. What is at
    the target under the same name is replaced, never written into. Returns bytes copied.
    """
    return _Copy().directory(source, target)


def hidden(name: str) -> bool:
    """Whether it is the name of a file that a copy of ours had not finished."""
    return name.startswith(_HIDDEN)


def unlink(name: str, folder: int) -> None:
    """Remove what is no directory, if it is there."""
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        pass  # gone, or not ours any longer


def open_directory(path: str | os.PathLike[str], parent: int | None = None) -> int:
    """Open a directory without following a link in its last step."""
    return os.open(path, _DIRECTORY, dir_fd=parent)


def open_file(path: str | os.PathLike[str]) -> int:
    """Open for reading what should be a regular file.

    A link in its last step is not followed and a FIFO not waited for: what it is, fstat says.
    """
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


@contextmanager
def opened(
    source: str | os.PathLike[str], target: str | os.PathLike[str]
) -> Iterator[tuple[int, int]]:
    """Both directories open for the length of the block, as `copy_tree` wants them."""
    reader = open_directory(source)
    try:
        writer = open_directory(target)
        try:
            yield reader, writer
        finally:
            os.close(writer)
    finally:
        os.close(reader)


class _Copy:
    """One copy: remembers the files with several names."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], tuple[int, str]] = {}
        self._open: list[int] = []

    def directory(self, source: int, target: int) -> int:
        try:
            return self._directory(source, target)
        finally:
            for fd in self._open:
                os.close(fd)

    def _directory(self, source: int, target: int) -> int:
        return sum(self._entry(name, source, target) for name in sorted(os.listdir(source)))

    def _entry(self, name: str, source: int, target: int) -> int:
        info = _stat(name, source)
        if stat.S_ISDIR(info.st_mode):
            return self._subdirectory(name, source, target)
        if stat.S_ISREG(info.st_mode):
            return self._file(name, source, target)
        if stat.S_ISLNK(info.st_mode):
            link = os.readlink(name, dir_fd=source)
            place(name, target, lambda new: os.symlink(link, new, dir_fd=target))
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISFIFO(info.st_mode):
            place(name, target, lambda new: _make_fifo(new, target, info))
        return 0

    def _subdirectory(self, name: str, source: int, target: int) -> int:
        inner = open_directory(name, source)
        try:
            try:
                os.mkdir(name, 0o700, dir_fd=target)
            except FileExistsError:
                pass
            outer = open_directory(name, target)
            try:
                copied = self._directory(inner, outer)
                _copy_attributes(inner, outer)
                return copied
            finally:
                os.close(outer)
        finally:
            os.close(inner)

    def _file(self, name: str, source: int, target: int) -> int:
        reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source)
        try:
            info = os.fstat(reader)
            if not stat.S_ISREG(info.st_mode):
                return 0  # swapped since we looked
            key = (info.st_dev, info.st_ino)
            if info.st_nlink > 1 and key in self._seen:
                folder, first = self._seen[key]
                place(
                    name,
                    target,
                    lambda new: os.link(
                        first, new, src_dir_fd=folder, dst_dir_fd=target, follow_symlinks=False
                    ),
                )
                return 0
            place(name, target, lambda new: _copy_file(reader, new, target, info.st_size))
            if info.st_nlink > 1:
                folder = os.dup(target)
                self._open.append(folder)
                self._seen[key] = (folder, name)
            return info.st_size
        finally:
            os.close(reader)


def _stat(name: str, folder: int) -> os.stat_result:
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def place(name: str, folder: int, make: Callable[[str], None]) -> None:
    """Make an entry under a name nobody knows, then rename it over `name`."""
    new = f"{_HIDDEN}{os.urandom(6).hex()}"
    try:
        make(new)
        os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        try:
            os.unlink(new, dir_fd=folder)
        except FileNotFoundError:
            pass
        raise


def _make_fifo(name: str, folder: int, info: os.stat_result) -> None:
    os.mkfifo(name, 0o600, dir_fd=folder)
    # By descriptor: chmod would follow a link that the FIFO has been swapped for meanwhile.
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.chown(f"/proc/self/fd/{fd}", info.st_uid, info.st_gid)
            os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(info.st_mode))
    finally:
        os.close(fd)


def _copy_file(reader: int, name: str, folder: int, size: int) -> None:
    writer = os.open(name, CREATE, 0o600, dir_fd=folder)
    try:
        os.ftruncate(writer, size)
        position = 0
        while position < size:
            try:
                data = os.lseek(reader, position, os.SEEK_DATA)
            except OSError:
                break  # nothing but a hole from here to the end
            hole = os.lseek(reader, data, os.SEEK_HOLE)
            _copy_range(reader, writer, data, hole)
            position = hole
        _copy_attributes(reader, writer)
    finally:
        os.close(writer)


def _copy_range(reader: int, writer: int, start: int, end: int) -> None:
    os.lseek(writer, start, os.SEEK_SET)
    while start < end:
        copied = os.sendfile(writer, reader, start, min(_CHUNK, end - start))
        if not copied:
            return  # the file has become shorter
        start += copied


def _copy_attributes(source: int, target: int) -> None:
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
