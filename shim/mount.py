"""A container's root file system: containerd's mounts onto it, and everything off again.

Mounts are what containerd's snapshotters hand out (type, source, target, fstab-style options) and
are made as containerd itself makes them: an option that is not a flag of mount(2) is the file
system's. Mounts inside the container are runc's business.
"""

from __future__ import annotations

import errno
import os
import time

from shim import overlay
from shim._native import ffi, lib
from shim.errors import InvalidArgument, Unimplemented
from shim.native import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class Mount(Protocol):
        """containerd.types.Mount, as far as it is looked at."""

        type: str
        source: str
        target: str
        options: list[str]


# mount(2)'s flags; linux/mount.h.
RDONLY, NOSUID, NODEV, NOEXEC = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SYNCHRONOUS, REMOUNT, MANDLOCK, DIRSYNC = 1 << 4, 1 << 5, 1 << 6, 1 << 7
NOATIME, NODIRATIME, BIND, REC, SILENT = 1 << 10, 1 << 11, 1 << 12, 1 << 14, 1 << 15
UNBINDABLE, PRIVATE, SLAVE, SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
RELATIME, STRICTATIME, LAZYTIME = 1 << 21, 1 << 24, 1 << 25
PROPAGATION = UNBINDABLE | PRIVATE | SLAVE | SHARED

# umount2(2)'s flags.
DETACH, NOFOLLOW = 2, 8

_SET = {
    "bind": BIND,
    "defaults": 0,
    "dirsync": DIRSYNC,
    "lazytime": LAZYTIME,
    "mand": MANDLOCK,
    "noatime": NOATIME,
    "nodev": NODEV,
    "nodiratime": NODIRATIME,
    "noexec": NOEXEC,
    "nosuid": NOSUID,
    "private": PRIVATE,
    "rbind": BIND | REC,
    "relatime": RELATIME,
    "remount": REMOUNT,
    "ro": RDONLY,
    "rprivate": PRIVATE | REC,
    "rshared": SHARED | REC,
    "rslave": SLAVE | REC,
    "runbindable": UNBINDABLE | REC,
    "shared": SHARED,
    "slave": SLAVE,
    "strictatime": STRICTATIME,
    "sync": SYNCHRONOUS,
    "unbindable": UNBINDABLE,
}
_CLEAR = {
    "async": SYNCHRONOUS,
    "atime": NOATIME,
    "dev": NODEV,
    "diratime": NODIRATIME,
    "exec": NOEXEC,
    "nolazytime": LAZYTIME,
    "nomand": MANDLOCK,
    "norelatime": RELATIME,
    "nostrictatime": STRICTATIME,
    "rw": RDONLY,
    "suid": NOSUID,
}
_BUSY_RETRIES = 5
_BUSY_PAUSE = 0.02  # seconds
_LINKS = 255  # symbolic links followed in one target, as in containerd


class Options:
    """Mount options taken apart: flags of mount(2), the file system's data, loop device or not."""

    __slots__ = ("data", "direct", "flags", "loop")

    def __init__(self, options: Iterable[str]) -> None:
        self.flags = 0
        self.data: list[str] = []
        self.loop = False
        for option in options:
            self._take(option)
        self.direct = self.loop and "direct-io" in self.data
        if self.direct:
            self.data.remove("direct-io")

    def _take(self, option: str) -> None:
        if option in _SET:
            self.flags |= _SET[option]
        elif option in _CLEAR:
            self.flags &= ~_CLEAR[option]
        elif option == "loop":
            self.loop = True
        else:
            _refuse(option)
            self.data.append(option)


def mount_all(mounts: Iterable[Mount], rootfs: str) -> None:
    """Mount everything onto `rootfs`, in order; if one fails, none is left.

    Raises OSError with the mount point, Unimplemented for id-mapped and FUSE mounts, and
    InvalidArgument for options that containerd should have consumed or that do not fit a page.
    """
    done: list[str] = []
    try:
        for mount in mounts:
            _mount(mount, inside(rootfs, mount.target), done)
    except BaseException:
        for target in reversed(done):
            lib.thaw_umount(os.fsencode(target), DETACH | NOFOLLOW)
        raise


def propagate(path: str, how: int) -> None:
    """Make all mounts on and below a mount point PRIVATE, SHARED, SLAVE or UNBINDABLE. OSError."""
    _call("", path, "", how | REC | SILENT)


def unmount_all(path: str) -> None:
    """Take off every mount on and below `path`, the deepest and latest first.

    A path without mounts, or none at all, is fine: `delete` comes after the daemon's own.
    Raises OSError if a mount stays.
    """
    path = os.path.realpath(path)
    points = mount_points(path)
    while points:
        for point in reversed(points):
            _unmount(point)
        before, points = points, mount_points(path)
        if len(points) >= len(before):
            raise OSError(errno.EBUSY, "mounts keep coming back", points[-1])


def mount_points(path: str) -> list[str]:
    """The mount points on and below `path`, in the order they were mounted; one a mount."""
    with open("/proc/self/mountinfo", "rb") as table:
        points = [_unescape(line.split(b" ", 5)[4]) for line in table]
    below = path.rstrip("/") + "/"
    return [point for point in points if point == path or point.startswith(below)]


def inside(root: str, target: str) -> str:
    """`target` under `root`, symbolic links followed as if `root` were the root directory.

    An image's links must not lead a mount out of its own file system.
    """
    path, links = root, 0
    todo = [part for part in reversed(target.split("/")) if part not in ("", ".")]
    while todo:
        part = todo.pop()
        if part == "..":
            path = path if path == root else os.path.dirname(path)
            continue
        step = os.path.join(path, part)
        if not os.path.islink(step):
            path = step
            continue
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.path.join(root, target))
        link = os.readlink(step)
        path = root if link.startswith("/") else path
        todo += [part for part in reversed(link.split("/")) if part not in ("", ".")]
    return path


def _mount(mount: Mount, target: str, done: list[str]) -> None:
    if mount.type.startswith(("fuse.", "fuse3.")):
        raise Unimplemented(f"mount type {mount.type} on {target}", hint="use another snapshotter")
    options = Options(mount.options)
    flags = options.flags & ~PROPAGATION
    folder, data = overlay.fit(mount.type, ",".join(options.data))
    source, device = mount.source, -1
    if options.loop:
        source, device = attach_loop(source, bool(flags & RDONLY), options.direct)
    try:
        _call(source, target, mount.type, flags, data, folder)
    finally:
        if device >= 0:
            os.close(device)  # from now on the mount holds it; without one the kernel clears it
    if not flags & REMOUNT:
        done.append(target)
    if options.flags & PROPAGATION:
        _call("", target, "", options.flags & (PROPAGATION | REC) | SILENT)
    if flags & BIND and flags & RDONLY:
        # The kernel ignores every flag but MS_REC when it makes a bind mount.
        _call("", target, "", flags | REMOUNT)


def attach_loop(path: str, readonly: bool, direct: bool = False) -> tuple[str, int]:
    """A loop device over the file at `path`: its path, and a descriptor that keeps it attached."""
    name = ffi.new("char[]", 32)
    fd = lib.thaw_loop_attach(os.fsencode(path), readonly, direct, name, 32)
    check(fd, "attach to a loop device", path)
    return os.fsdecode(ffi.string(name)), fd


def _call(
    source: str, target: str, kind: str, flags: int, data: str = "", folder: str = ""
) -> None:
    result = lib.thaw_mount(
        os.fsencode(folder) if folder else ffi.NULL,
        os.fsencode(source),
        os.fsencode(target),
        os.fsencode(kind),
        flags,
        os.fsencode(data) if data else ffi.NULL,
    )
    check(result, f"mount {kind or 'flags'} {flags:#x} from {source or 'nothing'}", target)


def _unmount(point: str) -> None:
    """One mount off `point`. What keeps it busy is given a moment, then the mount is detached."""
    encoded = os.fsencode(point)
    for _ in range(_BUSY_RETRIES):
        result = lib.thaw_umount(encoded, NOFOLLOW)
        if result != -errno.EBUSY:
            break
        time.sleep(_BUSY_PAUSE)
    else:
        result = lib.thaw_umount(encoded, DETACH | NOFOLLOW)
    if result not in (-errno.EINVAL, -errno.ENOENT):  # another unmount came first
        check(result, "unmount", point)


def _refuse(option: str) -> None:
    if option.startswith("X-containerd."):
        raise InvalidArgument(
            f"mount option {option} was not consumed",
            hint="containerd's mount manager handles it; is its version right?",
        )
    if option.startswith(("uidmap=", "gidmap=")):
        raise Unimplemented(f"id-mapped mount ({option})", hint="run the pod with hostUsers: true")


def _unescape(field: bytes) -> str:
    r"""Mountinfo writes space, tab, newline and backslash as \ooo."""
    if b"\\" in field:
        for code in (b"040", b"011", b"012", b"134"):
            field = field.replace(b"\\" + code, bytes((int(code, 8),)))
    return os.fsdecode(field)
