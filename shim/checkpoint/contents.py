"""What a worker has outside its memory: the difference of its root file system, its volumes on
tmpfs, its connections.

CRIU takes bind mounts for the host's affair, so what is in `/dev/shm` (a bind of the sandbox's
tmpfs under CRI) would be lost, and a file mapped from there could not be opened at the restore.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim import spawn
from shim.errors import CheckpointFailed, FailedPrecondition, InvalidArgument
from shim.snapshot.config import Connections
from shim.snapshot.host import on_tmpfs
from shim.snapshot.tree import copy_tree, opened
from shim.work import Work
from shim.worker.control import place_of

SHARED_MEMORY = "/dev/shm"
_ESTABLISHED = "01"


@dataclass(frozen=True)
class Volume:
    """A writable tmpfs that is bound into the container: where from, and where to."""

    source: str
    destination: str


@dataclass(frozen=True)
class Contents:
    """What has to be saved beside the images, found while the container still runs."""

    volumes: tuple[Volume, ...]
    connections: Connections


def survey(spec: Mapping[str, Any], work: Work) -> Contents:
    """Look at the container's mounts, open files and connections.

    Raises FailedPrecondition if what we save of its root file system could not be restored.
    """
    if work.upper is not None and work.details.get("name"):  # otherwise containerd keeps it
        refuse_devices(work.upper)
    pids = [int(pid) for pid in work.details["cgroup_pids"]]
    return Contents(
        tuple(tmpfs_volumes(spec, _used_paths(pids))), established(int(work.details["pid"]))
    )


def tmpfs_volumes(spec: Mapping[str, Any], used: set[str]) -> Iterator[Volume]:
    """The writable binds of a tmpfs that are /dev/shm or hold a file that the worker uses.

    Secrets and tokens are on tmpfs too, but mounted read-only: they are the new pod's own. So is
    the control directory: what is said there is said to one container.
    """
    control = _control_place(spec)
    for mount in spec.get("mounts") or []:
        options = mount.get("options") or []
        destination = os.path.normpath(mount["destination"])
        bound = "bind" in options or "rbind" in options or mount.get("type") == "bind"
        if not bound or "ro" in options or destination == control:
            continue
        if not os.path.isdir(mount["source"]):
            continue
        wanted = destination == SHARED_MEMORY or any(
            path.startswith(destination + "/") for path in used
        )
        if wanted and on_tmpfs(mount["source"]):
            yield Volume(mount["source"], destination)


def _control_place(spec: Mapping[str, Any]) -> str:
    try:
        return place_of(spec)
    except InvalidArgument:
        return ""  # a container that Thaw was asked nothing for may call anything so


def _used_paths(pids: list[int]) -> set[str]:
    """Paths, as the container sees them, of the files that its processes map or hold open."""
    paths: set[str] = set()
    for pid in pids:
        for kind in ("map_files", "fd"):
            folder = f"/proc/{pid}/{kind}"
            try:
                names = os.listdir(folder)
            except OSError:
                continue  # it has ended
            for name in names:
                try:
                    paths.add(os.readlink(f"{folder}/{name}"))
                except OSError:
                    continue
    return paths


def established(pid: int) -> Connections:
    """Count the established TCP connections in the network namespace of `pid`."""
    inside = outside = 0
    for table, loopback in (("tcp", _is_loopback4), ("tcp6", _is_loopback6)):
        try:
            with open(f"/proc/{pid}/net/{table}") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        for row in rows:
            if row[3] == _ESTABLISHED:
                if loopback(row[2].partition(":")[0]):
                    inside += 1
                else:
                    outside += 1
    return Connections(inside, outside)


def refuse_devices(upper: Path) -> None:
    """Raise FailedPrecondition if a device was made in an overlay's upper directory.

    A snapshot that could bring devices along would be as powerful as whoever wrote it. Whiteouts,
    which are devices 0:0, are the overlay's own.
    """
    for path, info in _walk(upper):
        if stat.S_ISBLK(info.st_mode) or (stat.S_ISCHR(info.st_mode) and info.st_rdev):
            raise FailedPrecondition(
                f"/{os.path.relpath(path, upper)} is a device, which cannot be restored",
                hint="devices are given to a container by its pod's spec; remove it",
            )


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    folders = [str(folder)]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue  # the container runs
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif not entry.is_file(follow_symlinks=False) and not entry.is_symlink():
                try:
                    yield entry.path, entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue


def save_difference(upper: Path | None, target: Path | None) -> None:
    """Copy the overlay's upper directory: whiteouts, extended attributes, reflinks if possible.

    Nobody but the frozen container can write there, so `cp` is safe; it does all of that.
    """
    if target is None:
        return
    if upper is None:
        target.mkdir(mode=0o755)
        return
    copy_upper(upper, target)


def copy_upper(source: Path, target: Path) -> None:
    """Make `target` equal to `source`, an overlay's upper directory. Raises CheckpointFailed."""
    argv = ["cp", "-a", "--reflink=auto", "-T", "--", str(source), str(target)]
    done = spawn.run(argv, {**os.environ, "LC_ALL": "C"})
    if done.status:
        raise CheckpointFailed(f"cannot copy {source} to {target}: {done.text[-300:]}")


def save_volumes(contents: Contents, extras: Path) -> None:
    """Copy what is in the volumes to volumes/0, volumes/1, …

    Sockets and devices are left out.
    """
    for number, volume in enumerate(contents.volumes):
        folder = extras / "volumes" / str(number)
        folder.mkdir(mode=0o700, parents=True)
        with opened(volume.source, folder) as (source, target):
            copy_tree(source, target)


def _is_loopback4(address: str) -> bool:
    return address.endswith("7F")  # little-endian hex of 127.x.y.z


def _is_loopback6(address: str) -> bool:
    mapped = address.startswith("0000000000000000FFFF0000") and address.endswith("7F")
    return mapped or address == "00000000000000000000000001000000"
