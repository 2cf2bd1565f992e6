"""The GPU memory library in a container: one mount, one variable, and its versions on the node.

It is mounted below /dev. That is a small file system of every container's own, there whenever
mounts are made, so that a place to mount on can be had in it even if the root file system is
read-only; and it is neither in the image nor in what a snapshot keeps of the root. (/run is a mount
of the pod's in some images, and not yet there in others; kubelet's /dev/termination-log shows that
a file can be bound below /dev.) A container that has the machine's /dev instead gets no library.

CRIU restores a mapped file by its path, and only if it is the very same. So each version that a
container was given is kept in a folder of the node, under the digest of its contents: one that is
there is never written to again, as it may be mapped. A snapshot names the one that it needs, and
carries it along to nodes that have another.

The daemon imports this: nothing outside of its import budget.
"""

from __future__ import annotations

import os

from shim.annotations import GPU_MEMORY, gpu_memory
from shim.errors import BadAnnotation, FailedPrecondition, Unfit
from shim.lean.digests import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from shim.config import Config

PLACE = "/dev/libthaw-gpu.so"
VARIABLE = "LD_PRELOAD"
CARRIED = "gpu-library.img"  # among CRIU's images, and called as they are
# Why a container has none.
SEVERAL = f"it may have several GPUs, and {GPU_MEMORY} does not say library"
_FILE = "libthaw-gpu.so"
_PREFIX, _SUFFIX = "libthaw-gpu-", ".so"
_DIGITS = 64
_HEX = frozenset("0123456789abcdef")
_OPTIONS = ["bind", "ro", "nosuid", "nodev"]
_LARGEST = 16 << 20  # bytes; ours has less than a hundredth of it


def is_wanted(annotations: Mapping[str, str], config: Config, *, several: bool = False) -> bool:
    """Whether the library shall move a container's GPU memory, as far as it can.

    `several`: it is to be given to a container with several GPUs, which must ask for it. One that
    has come by it in a restore need not.
    """
    try:
        return gpu_memory(annotations, config.text("gpu.memory"), several) == "library"
    except BadAnnotation:
        return False  # whoever has written that wanted something else than what is usual


# In a spec. Pure functions.


def is_possible(spec: Mapping[str, Any]) -> bool:
    """Whether the container has a /dev of its own, and nothing of the pod's at our place."""
    own = False
    for mount in spec.get("mounts") or ():
        destination = os.path.normpath(mount.get("destination", ""))
        if destination == "/dev":
            own = mount.get("type") == "tmpfs"
        elif destination == PLACE and not _digest(mount.get("source", "")):
            return False
    return own


def give(spec: dict[str, Any], path: str) -> None:
    """Add the library at `path`, or put it in the place of another version. Done twice, as once.

    It comes first of what is preloaded: what others take over of libcuda is then between us and
    the driver, as it is for a program without us.
    """
    mount = {"destination": PLACE, "type": "bind", "source": path, "options": list(_OPTIONS)}
    spec["mounts"] = [*_other_mounts(spec), mount]
    process = spec.get("process") or {}
    env = _other_environment(spec)
    theirs = ""
    for entry in env:
        name, _, said = entry.partition("=")
        theirs = said if name == VARIABLE else theirs  # of several the last one counts
    both = f"{VARIABLE}={PLACE}:{theirs}" if theirs else f"{VARIABLE}={PLACE}"
    kept = [entry for entry in env if entry.partition("=")[0] != VARIABLE]
    spec["process"] = {**process, "env": [*kept, both]}


def take(spec: dict[str, Any]) -> None:
    """Undo `give`; harmless if nothing was done."""
    if digest_of(spec):
        spec["mounts"] = _other_mounts(spec)
        spec["process"] = {**(spec.get("process") or {}), "env": _other_environment(spec)}


def put(spec: dict[str, Any], path: str) -> None:
    """Give the version at `path` and no other; empty: none."""
    if path:
        give(spec, path)
    else:
        take(spec)


def without(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as it would be without the library: what a snapshot and a pod are compared by."""
    changed = dict(spec)
    take(changed)
    return changed


def digest_of(spec: Mapping[str, Any]) -> str:
    """Which version of the library the container has: the SHA-256 of its file; empty: none."""
    digests = [
        _digest(mount.get("source", ""))
        for mount in spec.get("mounts") or ()
        if os.path.normpath(mount.get("destination", "")) == PLACE
    ]
    return digests[-1] if digests else ""


def _other_mounts(spec: Mapping[str, Any]) -> list[Any]:
    return [
        mount
        for mount in spec.get("mounts") or ()
        if os.path.normpath(mount.get("destination", "")) != PLACE
        or not _digest(mount.get("source", ""))
    ]


def _other_environment(spec: Mapping[str, Any]) -> list[str]:
    """Without our word of LD_PRELOAD, and without that if there is no other in it."""
    found = []
    for entry in (spec.get("process") or {}).get("env") or ():
        name, _, said = entry.partition("=")
        first, _, rest = said.partition(":")
        if name != VARIABLE or first != PLACE:
            found.append(entry)
        elif rest:
            found.append(f"{VARIABLE}={rest}")
    return found


def _digest(source: str) -> str:
    name = os.path.basename(source)
    digest = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    ours = is_digest(digest) and name == f"{_PREFIX}{digest}{_SUFFIX}"
    return digest if ours else ""


def is_digest(text: str) -> bool:
    """Whether it can be what `digest_of` answers for a version."""
    return len(text) == _DIGITS and set(text) <= _HEX


# On the node.


def is_version(name: str) -> bool:
    """Whether a file in the folder of versions is called like one."""
    return bool(_digest(name))


def installed() -> str:
    """Where this Thaw has its own version: a file that an upgrade replaces or removes."""
    from shim.native import LIBEXEC

    return f"{LIBEXEC}/{_FILE}"


def path_of(folder: str, digest: str) -> str:
    """Where a version is kept."""
    return f"{folder}/{_PREFIX}{digest}{_SUFFIX}"


def find(folder: str, digest: str, carried: str = "") -> str:
    """The file of a version, looked at: in the folder, or else in a snapshot (see `carry`).

    Raises Unfit naming the version if it is in neither, or another file has its name.
    """
    path = path_of(folder, digest)
    if os.path.lexists(path) or not carried:
        return _same(path, digest)
    return _same(carried, digest)


def _same(path: str, digest: str) -> str:
    try:
        found = sha256(_read(path))
    except OSError as error:
        raise Unfit(
            f"its processes have the GPU memory library {digest} mapped, which is not here: "
            f"{path}: {error.strerror}"
        ) from error
    if found != digest:
        raise Unfit(f"{path} is not the GPU memory library {digest}")
    return path


def carry(folder: str, digest: str, images: str) -> None:
    """Put a version among a snapshot's images, for nodes that never had it. Raises Unfit, OSError.

    Two builds of one source differ, and each node may have made its own.
    """
    data = _read(find(folder, digest))
    fd = os.open(f"{images}/{CARRIED}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)


def bring(folder: str, digest: str, images: str) -> str:
    """The file of a version in the folder, from the snapshot if need be. Raises Unfit, OSError."""
    found = find(folder, digest, f"{images}/{CARRIED}")
    return keep(folder, found) if found != path_of(folder, digest) else found


def keep(folder: str, file: str = "") -> str:
    """Keep the version in `file` (that of this Thaw), and answer where.

    Raises OSError, and FailedPrecondition if another file has the name.
    """
    data = _read(file or installed())
    path = path_of(folder, sha256(data))
    try:
        there = _read(path)
    except FileNotFoundError:
        _write(folder, path, data)
        there = _read(path)
    if there != data:
        raise FailedPrecondition(f"{path} is not what its name says", hint="remove it")
    return path


def _write(folder: str, path: str, data: bytes) -> None:
    """A link rather than a rename: what is there already, and mapped, must not be replaced."""
    os.makedirs(folder, mode=0o755, exist_ok=True)
    draft = f"{folder}/.{os.path.basename(path)}.{os.getpid()}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb", buffering=0) as file:
            file.write(data)
            os.fchmod(fd, 0o444)  # for any user of the container, and whatever our umask is
            os.fsync(fd)  # before it has a name that says what is in it
        os.link(draft, path)
    except FileExistsError:
        pass  # another pod was quicker
    finally:
        os.unlink(draft)


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(_LARGEST)
