"""What a trial has instead of what its original shares with others: mounts, a network, streams.

All mounts are made in a mount namespace of the calling thread's, and the network namespace has no
name: both go with those who use them, however these end. What lies in folders is removed by name.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from shim.checkpoint.contents import copy_upper
from shim.errors import Unfit
from shim.mount import SHARED, SLAVE, mount_all, propagate
from shim.namespaces import unshare
from shim.proto.task_pb import Mount
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.mounts import Resolve, parse
from shim.trial.spec import Bind, flags_of, writable
from shim.work import Work

_LARGEST = 16 << 20  # bytes of a file that is bound into a container: they go to the state folder
# Those of the kernel's own: what is written there is written to the machine.
_KERNELS = frozenset(
    [
        *("binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs"),
        *("efivarfs", "fusectl", "hugetlbfs", "mqueue", "proc", "pstore", "securityfs", "sysfs"),
        "tracefs",
    ]
)


def own_mounts() -> None:
    """Give this thread, for the rest of its life, mounts of its own, and a umask.

    The host's later ones come along, above all what it unmounts; none of ours goes there. Shared
    among themselves they stay, as a container's may have to be slaves of them. Raises OSError.
    """
    unshare("mnt")  # and what a thread has in common with others for files, its umask too
    os.umask(0o022)
    propagate("/", SLAVE)
    propagate("/", SHARED)


@dataclass(frozen=True)
class Given:
    """What is bound to some destinations instead, and the file systems that are seen there."""

    sources: Mapping[str, str]
    kinds: Mapping[str, str]


def give_root(work: Work, scratch: Path, *, contents: bool) -> tuple[Mount, ...]:
    """The original's root file system with new upper and work directories, made in `scratch`.

    `contents`: nothing is saved of the old upper directory, and what is there now is copied.
    Raises OSError, CheckpointFailed.
    """
    old = work.rootfs[0]
    folders = {"upperdir": scratch / "upper", "workdir": scratch / "work"}
    assert work.upper is not None  # it would have been refused
    for folder in folders.values():
        _like(work.upper, folder)
    if contents:
        copy_upper(work.upper, folders["upperdir"])
    options = [
        f"{name}={_escaped(folders[name])}"
        if (name := option.partition("=")[0]) in folders
        else option
        for option in old.options
    ]
    return (Mount(type=old.type, source=old.source, target=old.target, options=options),)


def give_volumes(
    spec: Mapping[str, Any], config: SnapshotConfig, resolve: Resolve, folder: Path, scratch: Path
) -> Given:
    """For every bind that can be written to a copy: of a folder one that is made on writing.

    What the snapshot brings along for a volume gets an empty one. Raises Unfit, OSError.
    """
    table = _table()
    sources: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for number, bind in enumerate(writable(spec)):
        mode = os.stat(bind.source).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            continue  # it is no volume: whoever has the device has it
        place = folder / "volumes" / str(number)
        if stat.S_ISREG(mode):
            _copy_file(bind, place)
            kinds[bind.destination] = _kind(table, str(folder))
        elif stat.S_ISDIR(mode):
            _refuse_special(table, bind)
            flags = flags_of(config.mounts, resolve(bind.destination))
            saved = bind.destination in config.volumes
            own = None if saved else scratch / "volumes" / str(number)
            kinds[bind.destination] = _mount_folder(bind, place, own, flags)
        else:
            raise Unfit(f"{bind.source} at {bind.destination} is neither a file nor a folder")
        sources[bind.destination] = str(place)
    return Given(sources, kinds)


def _copy_file(bind: Bind, place: Path) -> None:
    info = os.stat(bind.source)
    if info.st_size > _LARGEST:
        raise Unfit(f"the file at {bind.destination} is too large to be copied")
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    shutil.copyfile(bind.source, place)
    os.chown(place, info.st_uid, info.st_gid)
    os.chmod(place, stat.S_IMODE(info.st_mode))


def _refuse_special(table: list[tuple[str, str]], bind: Bind) -> None:
    source = os.path.realpath(bind.source)
    kind = _kind(table, source)
    if kind in _KERNELS:
        raise Unfit(f"{bind.destination} is a {kind}, of which there is no copy")
    if bind.recursive and any(path.startswith(f"{source.rstrip('/')}/") for path, _ in table):
        raise Unfit(f"other file systems are mounted in {bind.destination}")


def _mount_folder(bind: Bind, place: Path, own: Path | None, flags: list[str]) -> str:
    """Mount an empty tmpfs, or an overlay over the source; answers which it is."""
    place.mkdir(mode=0o755, parents=True)
    if own is None:
        info, room = os.stat(bind.source), os.statvfs(bind.source)
        size = room.f_blocks * room.f_frsize
        limits = [f"size={size}"] if size else []
        limits += [f"mode={stat.S_IMODE(info.st_mode):o}"]
        limits += [f"uid={info.st_uid}", f"gid={info.st_gid}"]
        mount_all([Mount(type="tmpfs", source="thaw", options=[*flags, *limits])], str(place))
        return "tmpfs"
    source = Path(bind.source).resolve()
    folders = [own / "upper", own / "work"]
    for folder in folders:
        _like(source, folder)
    names = ("lowerdir", "upperdir", "workdir")
    layers = zip(names, (source, *folders), strict=True)
    options = [*flags, *(f"{name}={_escaped(path)}" for name, path in layers)]
    mount_all([Mount(type="overlay", source="overlay", options=options)], str(place))
    return "overlay"


def _like(model: Path, folder: Path) -> None:
    """Make a folder with the owner and the rights of another one."""
    info = os.stat(model)
    folder.mkdir(parents=True)
    os.chown(folder, info.st_uid, info.st_gid)
    os.chmod(folder, stat.S_IMODE(info.st_mode))


def _escaped(path: Path) -> str:
    text = str(path)
    for character in "\\,:":
        text = text.replace(character, f"\\{character}")
    return text


def _table() -> list[tuple[str, str]]:
    """Mount points and their file systems, as this thread sees them."""
    with open("/proc/thread-self/mountinfo") as file:
        return [(point.path, point.type) for point in parse(file.read())]


def _kind(table: Iterable[tuple[str, str]], path: str) -> str:
    """The file system that a path lies on."""
    found = ("", "")
    for place, kind in table:
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(found[0]):
            found = (place, kind)
    return found[1]


# -- network and streams ---------------------------------------------------------------------------


def own_network(addresses: Iterable[str]) -> int:
    """Give this thread a network namespace with these addresses, in which nobody else is.

    `addresses` are "INTERFACE ADDRESS" each: sockets are bound to them. Answers a descriptor of the
    namespace. Raises OSError.
    """
    from pyroute2 import IPRoute

    unshare("net")
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with IPRoute() as route:
            _furnish(route, [line.split(" ", 1) for line in addresses])
    except Exception as error:
        os.close(fd)
        raise OSError(f"no network like the pod's can be made: {error}") from error
    return fd


def _furnish(route: Any, lines: list[list[str]]) -> None:
    route.link("set", index=1, state="up")
    for number, name in enumerate(dict.fromkeys(name for name, _ in lines)):
        if name != "lo":
            # One end of a pair needs no module that a node with pods does not have.
            route.link("add", ifname=name, kind="veth", peer={"ifname": f"thaw{number}"})
            index, *_ = route.link_lookup(ifname=name)
            other, *_ = route.link_lookup(ifname=f"thaw{number}")
            for link in (other, index):
                route.link("set", index=link, state="up")
            for family in (2, 10):
                # CRIU connects datagram sockets to peers that must have a route, if to nowhere.
                route.route("add", family=family, oif=index, dst="default", priority=number + 1)
    for name, text in lines:
        address = ip_address(text)
        index, *_ = route.link_lookup(ifname=name)
        flags = {"flags": _NODAD} if address.version == 6 else {}
        route.addr("add", index=index, address=text, prefixlen=address.max_prefixlen, **flags)


_NODAD = 0x2  # IFA_F_NODAD: it is ours at once


@contextmanager
def streams() -> Iterator[dict[int, int]]:
    """Pipes for the standard streams: nothing comes of them, and nobody reads what goes there."""
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    try:
        yield {number: pipe[0 if number == 0 else 1] for number, pipe in enumerate(pipes)}
    finally:
        for pipe in pipes:
            for fd in pipe:
                os.close(fd)
