"""Laying the members of a tar into a directory, and taking them back.

Both sides are somebody else's: what the tar says, and who writes to the directory meanwhile. So
every step is made relative to an open directory, no link is followed, and what is pinned by a
descriptor is what is changed (see tree.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shim.errors import Unfit
from shim.snapshot.attributes import kept, unfit
from shim.snapshot.config import DAMAGED
from shim.snapshot.parts import Parts
from shim.snapshot.tar import Kind, Member
from shim.snapshot.tree import CREATE, hidden, open_directory, place, unlink

# What is the host's trouble and no fault of a member's.
_HOSTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def lay(where: str, parts: Parts, found: Iterable[Member], target: int, *, whiteouts: bool) -> int:
    """Lay members, whose data is in `parts`, into the open directory `target`; bytes of files.

    All are judged before the first is laid. See Archive.extract for the rest.
    """
    whole = list(judged(found, where, whiteouts))
    return _Laying(where, parts, target, whole, whiteouts).run()


def judged(found: Iterable[Member], where: str, whiteouts: bool) -> Iterator[Member]:
    """The members, each after it was looked at. Raises Unfit.

    They come as a walk of folders does: each in the folder that came before it. So a folder is
    finished once it is left, and no name comes twice.
    """
    names: list[set[bytes]] = [set()]
    path: list[bytes] = []
    seen: set[bytes] = set()
    for number, member in enumerate(found):
        reason = _reason(member, whiteouts, seen)
        if reason:
            raise Unfit(f"{where}: {_shown(member)} {reason}", hint=DAMAGED)
        *parent, name = member.path.split(b"/")
        if parent != path[: len(parent)] or (not name and number):
            raise Unfit(f"{where}: {_shown(member)} is not in its folder's place", hint=DAMAGED)
        del path[len(parent) :], names[len(parent) + 1 :]
        if name in names[-1]:
            raise Unfit(f"{where}: {_shown(member)} comes twice", hint=DAMAGED)
        if member.kind is Kind.FOLDER and name:
            path.append(name)
            names[-1].add(name)
            names.append(set())
        elif name:
            names[-1].add(name)
            seen.add(member.path)
        yield member


def _reason(member: Member, whiteouts: bool, seen: set[bytes]) -> str:
    """Why a member cannot be laid; empty if it can."""
    if member.kind in (Kind.CHARACTERS, Kind.BLOCKS):
        if member.kind is Kind.BLOCKS or member.device != (0, 0):
            return "is a device"
        if not whiteouts:
            return "is a whiteout, and there is no overlay"
    if member.kind is Kind.LINK and member.target not in seen:
        return f"is a link to {os.fsdecode(member.target)!r}, which is no earlier member"
    return unfit(member.xattrs, overlay=whiteouts) if member.xattrs else ""


def _shown(member: Member) -> str:
    return repr(os.fsdecode(member.path))


@dataclass
class _Folder:
    """A directory that is being filled."""

    fd: int
    member: Member | None  # None: its attributes are not ours to set


class _Laying:
    """One extraction: the folders from the target down to where it is, each open."""

    def __init__(
        self, where: str, parts: Parts, target: int, found: list[Member], whiteouts: bool
    ) -> None:
        self._where = where
        self._parts = parts
        self._target = target
        self._members = found
        self._overlay = whiteouts
        self._wanted = {member.target for member in found if member.kind is Kind.LINK}
        self._made: dict[bytes, tuple[int, int]] = {}  # what links lead to: device and inode
        self._folders = [_Folder(os.dup(target), None)]

    def run(self) -> int:
        try:
            for member in self._members:
                with _blaming(self._where, member):
                    self._member(member)
            self._leave(0)
        finally:
            for folder in self._folders:
                os.close(folder.fd)
        return sum(member.size for member in self._members if member.kind is Kind.FILE)

    def _member(self, member: Member) -> None:
        if not member.path:
            self._folders[0].member = member if self._overlay else None
            return
        *parent, name = member.path.split(b"/")
        self._leave(len(parent) + 1)
        folder = self._folders[-1].fd
        if member.kind is Kind.FOLDER:
            self._enter(name, folder, member)
        else:
            place(os.fsdecode(name), folder, lambda new: self._make(member, new, folder))

    def _enter(self, name: bytes, folder: int, member: Member) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=folder)
        except FileExistsError:
            pass
        self._folders.append(_Folder(open_directory(os.fsdecode(name), folder), member))

    def _leave(self, depth: int) -> None:
        """Finish the folders below that depth: what was put into them has changed their times."""
        while len(self._folders) > depth:
            folder = self._folders.pop()
            try:
                if folder.member is not None:
                    with _blaming(self._where, folder.member):
                        self._set_attributes(folder.fd, folder.member)
            finally:
                os.close(folder.fd)

    def _make(self, member: Member, name: str, folder: int) -> None:
        if member.kind is Kind.LINK:
            self._link(member, name, folder)
            return
        if member.kind is Kind.FILE:
            fd = os.open(name, CREATE, 0o600, dir_fd=folder)
        else:
            fd = _make_special(member, name, folder)
        try:
            if member.kind is Kind.FILE:
                fill(member, self._parts, fd)
            self._set_attributes(fd, member)
            self._note(member, fd)
        finally:
            os.close(fd)

    def _note(self, member: Member, fd: int) -> None:
        if member.path in self._wanted:
            info = os.fstat(fd)
            self._made[member.path] = (info.st_dev, info.st_ino)

    def _set_attributes(self, fd: int, member: Member) -> None:
        """Owner first: a change of it takes the set-user-id bit and the capabilities away.

        By way of /proc, because a pinned symlink, FIFO or device cannot be changed by its
        descriptor.
        """
        place: int | str = fd
        if member.kind not in (Kind.FILE, Kind.FOLDER):
            place = f"/proc/self/fd/{fd}"
        os.chown(place, member.uid, member.gid)
        if member.kind is not Kind.SYMLINK:
            os.chmod(place, member.mode)
        for name, value in kept(member.xattrs, overlay=self._overlay):
            os.setxattr(place, name, value)
        os.utime(place, ns=(member.mtime, member.mtime))

    def _link(self, member: Member, name: str, folder: int) -> None:
        """Another name for a file that we made: for that very one, whatever has its name now."""
        fd = self._open_again(member.target)
        try:
            info = os.fstat(fd)
            if (info.st_dev, info.st_ino) != self._made[member.target]:
                raise Unfit(f"{os.fsdecode(member.target)} was replaced while it was restored")
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=folder, follow_symlinks=True)
            self._note(member, fd)
        finally:
            os.close(fd)

    def _open_again(self, path: bytes) -> int:
        *parents, name = path.split(b"/")
        folder = os.dup(self._target)
        try:
            for parent in parents:
                inner = open_directory(os.fsdecode(parent), folder)
                os.close(folder)
                folder = inner
            return _pin(os.fsdecode(name), folder)
        finally:
            os.close(folder)


def fill(member: Member, parts: Parts, fd: int) -> None:
    """Write a file's content, with its holes, into an empty one. Raises Damaged and OSError."""
    if member.regions is None:
        parts.copy(member.start, member.size, fd, 0)
        return
    os.ftruncate(fd, member.size)
    start = member.start
    for offset, length in member.regions:
        parts.copy(start, length, fd, offset)
        start += length


def _make_special(member: Member, name: str, folder: int) -> int:
    """A symlink, FIFO or whiteout, pinned by the descriptor returned."""
    if member.kind is Kind.SYMLINK:
        os.symlink(member.target, os.fsencode(name), dir_fd=folder)
        wanted = stat.S_IFLNK
    elif member.kind is Kind.FIFO:
        os.mkfifo(name, 0o600, dir_fd=folder)
        wanted = stat.S_IFIFO
    else:
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=folder)
        wanted = stat.S_IFCHR
    fd = _pin(name, folder)
    if stat.S_IFMT(os.fstat(fd).st_mode) != wanted:  # swapped meanwhile
        os.close(fd)
        raise Unfit(f"{os.fsdecode(member.path)} was replaced while it was restored")
    return fd


def _pin(name: str, folder: int) -> int:
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)


class _blaming:  # noqa: N801 - a context manager that is cheap: there is one for each member
    """Make errors of the system those of a member, unless they are the host's."""

    __slots__ = ("_member", "_where")

    def __init__(self, where: str, member: Member) -> None:
        self._where = where
        self._member = member

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno not in _HOSTS:
            raise Unfit(
                f"{self._where}: cannot restore {_shown(self._member)}: {error.strerror}",
                hint="does the file system take such files, owners and attributes?",
            ) from error


def remove(found: Iterable[Member], target: int) -> None:
    """Remove what was laid of these members into the open directory `target`, and only that."""
    _remove(_nested(found), target)


_Nested = dict[bytes, "_Nested | None"]


def _nested(found: Iterable[Member]) -> _Nested:
    """The members as folders in folders; None for what is no folder."""
    root: _Nested = {}
    path: list[_Nested] = [root]
    for member in found:
        *parent, name = member.path.split(b"/")
        del path[len(parent) + 1 :]
        if member.kind is not Kind.FOLDER:
            path[-1][name] = None
        elif name:
            inner: _Nested = {}
            path[-1][name] = inner
            path.append(inner)
    return root


def _remove(entries: _Nested, folder: int) -> None:
    for name in os.listdir(folder):
        if hidden(name):
            unlink(name, folder)
    for entry, inner in entries.items():
        if inner is None:
            unlink(os.fsdecode(entry), folder)
        else:
            _remove_folder(os.fsdecode(entry), inner, folder)


def _remove_folder(name: str, entries: _Nested, folder: int) -> None:
    try:
        inner = open_directory(name, folder)
    except OSError:
        return  # gone, or not ours any longer
    try:
        _remove(entries, inner)
    finally:
        os.close(inner)
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError:
        pass  # others have put something there
