"""The device nodes of a restored container: those of the new pod, and the old one's no longer.

A container's /dev is a tmpfs that CRIU dumps whole, so the nodes of the old pod come back with it:
/dev/nvidia1, where this pod was given /dev/nvidia0. What can be opened is said by the new pod's
devices cgroup whatever nodes there are; this is for the worker to find what it may open. A node
that the worker has made by itself is a file of its own, and stays.

It is done at CRIU's post-restore stage, so that no process ever sees the old ones. What CRIU has
opened by then, it has opened by its path: a worker that had such a device open at the dump cannot
be restored without it. (Of GPUs none is open then, see gpu/suspension.py.)

The tree is the snapshot's: no link of it is followed but inside the container's root, and then
every step is made relative to an open directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from shim.errors import RestoreFailed
from shim.snapshot.config import DeviceNode
from shim.snapshot.mounts import inside, mounts_of
from shim.snapshot.nodes import Exchange
from shim.snapshot.tree import open_directory, place

_TYPES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_HINT = "the pod's spec names it; see linux.devices in the bundle's config.json"


def exchange(wanted: Exchange, init: int) -> None:
    """Remove and make nodes in the container of `init`, a pid of ours. Raises RestoreFailed.

    Where something is mounted nothing is changed: runc makes no node there, either.
    """
    if wanted == Exchange():
        return
    root = f"/proc/{init}/root"
    resolve = inside(root)
    mounted = {point.path for point in mounts_of(init)}
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for verb, act, nodes in (("remove", _remove, wanted.gone), ("make", _make, wanted.made)):
            for node in nodes:
                folder, name = os.path.split(node.path)
                folder = resolve(folder)
                if os.path.join(folder, name) in mounted:
                    continue
                with _naming(node, verb), _folder(top, folder, make=act is _make) as opened:
                    act(node, opened)
    finally:
        os.close(top)


@contextmanager
def _naming(node: DeviceNode, verb: str) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError) as error:  # numbers that no device can have
        raise RestoreFailed(
            f"cannot {verb} the device node {node.path!a:.200}: {error}", hint=_HINT
        ) from error


@contextmanager
def _folder(top: int, path: str, *, make: bool) -> Iterator[int]:
    """The folder at `path`, without links in it, below the root `top`.

    -1 if there is none, unless it is to be made. Nobody of the container runs, but its volumes are
    also others': what has become a link since the path was resolved is an error.
    """
    at = os.dup(top)
    try:
        for name in filter(None, path.split("/")):
            below = _below(at, name, make=make)
            os.close(at)
            at = below
            if at < 0:
                break
        yield at
    finally:
        if at >= 0:
            os.close(at)


def _below(folder: int, name: str, *, make: bool) -> int:
    try:
        return open_directory(name, folder)
    except FileNotFoundError:
        if not make:
            return -1
        os.mkdir(name, 0o755, dir_fd=folder)  # as runc does
        return open_directory(name, folder)


def _remove(node: DeviceNode, folder: int) -> None:
    """Remove a node that is still what it was; else the worker has put something in its place."""
    name = os.path.basename(node.path)
    info = _look(name, folder)
    if info is not None and _is_node(info, node):
        os.unlink(name, dir_fd=folder)


def _make(node: DeviceNode, folder: int) -> None:
    name = os.path.basename(node.path)
    info = _look(name, folder)
    if info is None or not (_is_node(info, node) and _has_rights(info, node)):
        place(name, folder, lambda new: _new(node, new, folder))


def _look(name: str, folder: int) -> os.stat_result | None:
    if folder < 0:
        return None
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_node(info: os.stat_result, node: DeviceNode) -> bool:
    if stat.S_IFMT(info.st_mode) != _TYPES.get(node.type):
        return False
    numbers = (os.major(info.st_rdev), os.minor(info.st_rdev))
    return node.type == "p" or numbers == (node.major, node.minor)


def _has_rights(info: os.stat_result, node: DeviceNode) -> bool:
    found = (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
    return found == (node.mode, node.uid, node.gid)


def _new(node: DeviceNode, name: str, folder: int) -> None:
    device = os.makedev(node.major, node.minor)
    os.mknod(name, _TYPES[node.type] | 0o600, device, dir_fd=folder)
    # By descriptor: chmod would follow a link that the node has been swapped for meanwhile.
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if _is_node(os.fstat(fd), node):
            os.chown(f"/proc/self/fd/{fd}", node.uid, node.gid)
            os.chmod(f"/proc/self/fd/{fd}", node.mode)
    finally:
        os.close(fd)
