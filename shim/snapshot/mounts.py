"""The mounts that a process sees, for recording at the dump and checking after the restore."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from shim.gpu.hooks import hides_parameters
from shim.lean.values import Value
from shim.snapshot.config import MountPoint
from shim.snapshot.host import read_mount_table

_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


def mounts_of(pid: int) -> list[MountPoint]:
    """The mounts of `pid`'s namespace, sorted by path."""
    return parse(read_mount_table(pid))


def parse(table: str) -> list[MountPoint]:
    """The lines of a mountinfo, sorted by path; proc(5) has the format."""
    points = []
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        words = before.split(" ")
        tags = [tag.partition(":")[0] for tag in words[6:]]
        points.append(
            MountPoint(
                path=_unescape(words[4]),
                type=after.split(" ")[0],
                options=sorted(words[5].split(",")),
                propagation=_propagation(tags),
            )
        )
    return sorted(points, key=lambda point: (point.path, point.type))


def without(points: list[MountPoint], paths: Collection[str]) -> list[MountPoint]:
    """The mounts but for those at `paths`."""
    return [point for point in points if point.path not in paths]


def differences(wanted: list[MountPoint], found: list[MountPoint]) -> list[str]:
    """What is not as it should be, one sentence each; empty if all is.

    Several mounts on one path are all compared: one above another hides it and its flags.
    """
    complaints = []
    for path in sorted({point.path for point in [*wanted, *found]}):
        then, now = _describe(wanted, path), _describe(found, path)
        if then == now:
            continue
        if not now:
            complaints.append(f"{path} is not mounted")
        elif not then:
            complaints.append(f"{path} is mounted too")
        else:
            complaints.append(f"{path} is {now}, not {then}")
    return complaints


def _describe(points: list[MountPoint], path: str) -> str:
    return " and ".join(
        sorted(
            f"{point.type} {','.join(point.options)} {point.propagation}"
            for point in points
            if point.path == path
        )
    )


def _propagation(tags: list[str]) -> str:
    words = [word for tag, word in (("shared", "shared"), ("master", "slave")) if tag in tags]
    return " ".join(words) or "private"


def _unescape(path: str) -> str:
    for code, character in _ESCAPES.items():
        path = path.replace(code, character)
    return path


# Against the live spec

Resolve = Callable[[str], str]


def _plainly(path: str) -> str:
    return path


def unexpected(
    spec: Mapping[str, Any], points: Sequence[MountPoint], resolve: Resolve = _plainly
) -> list[str]:
    """The mounts that the live config.json cannot explain, one sentence each.

    What was recorded at the dump is the snapshot's word; this is the pod's. `resolve` (see
    `inside`) says where a destination leads: runc follows the links of the root file system, and
    /var/run is one, as a rule. Mounts below a bind that is recursive are its source's, and not
    looked at.
    """
    roles = [*_roles(spec, resolve), *_of_hooks(spec, points)]
    complaints = []
    for path, here in _by_path(points).items():
        known = [role for role in roles if role.path == path]
        if not known and all(any(role.covers(point) for role in roles) for point in here):
            continue
        if len(here) > len(known):
            complaints.append(f"{path} is mounted {'again' if known else 'too'}")
            continue
        complaints += [
            f"{path} is {point.type} {','.join(point.options)}, not {' or '.join(map(str, known))}"
            for point in here
            if not any(role.explains(point) for role in known)
        ]
    return complaints


def missing(
    spec: Mapping[str, Any],
    points: Sequence[MountPoint],
    resolve: Resolve = _plainly,
    exists: Callable[[str], bool] = os.path.lexists,
) -> list[str]:
    """What the live config.json wants mounted, hidden or read-only and is not, a sentence each.

    `exists` says whether this kernel has a path in /proc or /sys: runc leaves out what it has not.
    """
    here, linux = _by_path(points), spec.get("linux") or {}
    wanted = {resolve(_clean(mount["destination"])) for mount in spec.get("mounts") or []}
    complaints = [f"{path} is not mounted" for path in sorted(wanted - here.keys())]
    kernels = tuple(f"{path}/" for path in ("/proc", "/sys") if path in here)
    for kind, word in (("maskedPaths", "hidden"), ("readonlyPaths", "read-only")):
        paths = [path for path in map(_clean, linux.get(kind) or []) if path not in here]
        seen = [path for path in paths if path.startswith(kernels) and exists(path)]
        complaints += [f"{path} is not {word}" for path in seen]
    return complaints


def inside(root: str) -> Resolve:
    """How paths resolve below `root`, a container's (/proc/PID/root): no link leads out of it."""

    def resolve(path: str) -> str:
        done, links = "/", 0
        parts = path.split("/")[::-1]
        while parts:
            part = parts.pop()
            if part in ("", ".", ".."):
                done = os.path.dirname(done) if part == ".." else done
                continue
            here = os.path.join(done, part)
            try:
                target = os.readlink(root + here)
            except OSError:  # no link, or nothing at all
                done = here
                continue
            links += 1
            if links > _LINKS:
                return path
            done = "/" if target.startswith("/") else done
            parts += target.split("/")[::-1]
        return done

    return resolve


class _Role(Value):
    """Why a mount may be at `path`; without types it may be of any."""

    path: str
    types: frozenset[str] = frozenset()
    read_only: bool = False
    recursive: bool = False

    def explains(self, point: MountPoint) -> bool:
        # cgroup v1: runc leaves the tmpfs around the hierarchies writable, whatever the spec says.
        around = point.type == "tmpfs" and "cgroup" in self.types
        good = not self.read_only or around or "ro" in point.options
        return good and (not self.types or point.type in self.types)

    def covers(self, point: MountPoint) -> bool:
        """Whether it has brought a mount below its own."""
        below = point.path.startswith(self.path.rstrip("/") + "/")
        return self.recursive and below and (not self.types or self.explains(point))

    def __str__(self) -> str:
        kind = "/".join(sorted(self.types)) or "a bind"
        return f"{kind} ro" if self.read_only else kind


_LINKS = 40  # as many as the kernel follows
_DEVICES = ("null", "random", "full", "tty", "zero", "urandom")
_CGROUPS = frozenset(["cgroup", "cgroup2", "tmpfs"])
_PARAMETERS = re.compile(
    r"/proc/driver/nvidia/params|(/var)?/run/nvidia-ctk-hook(/[0-9a-f-]{1,36})?"
)
_MASKS = frozenset(["tmpfs", "devtmpfs"])  # an empty folder, or /dev/null, of whichever /dev


def _roles(spec: Mapping[str, Any], resolve: Resolve) -> list[_Role]:
    """What runc mounts for such a spec (libcontainer/rootfs_linux.go)."""
    linux, process = spec.get("linux") or {}, spec.get("process") or {}
    roles = [_Role("/", read_only=bool((spec.get("root") or {}).get("readonly")))]
    roles += [_of_mount(mount, resolve) for mount in spec.get("mounts") or []]
    roles += [_Role(_clean(path), types=_MASKS) for path in linux.get("maskedPaths") or []]
    roles += [_Role(_clean(path), read_only=True) for path in linux.get("readonlyPaths") or []]
    if process.get("terminal"):
        roles.append(_Role("/dev/console", types=frozenset(["devpts"])))
    if any(entry.get("type") == "user" for entry in linux.get("namespaces") or []):
        # Who cannot make device nodes gets the machine's.
        devices = [device["path"] for device in linux.get("devices") or []]
        roles += [_Role(path) for path in {*devices, *(f"/dev/{name}" for name in _DEVICES)}]
    return roles


def _of_mount(mount: Mapping[str, Any], resolve: Resolve) -> _Role:
    options, kind = mount.get("options") or [], mount.get("type", "")
    path, read_only = resolve(_clean(mount["destination"])), "ro" in options
    if kind in ("bind", "") or "bind" in options or "rbind" in options:
        return _Role(path, read_only=read_only, recursive="rbind" in options)
    if kind == "cgroup":
        return _Role(path, _CGROUPS, read_only, recursive=True)
    return _Role(path, frozenset([kind]), read_only)


def _of_hooks(spec: Mapping[str, Any], points: Sequence[MountPoint]) -> list[_Role]:
    """What NVIDIA's hook mounts: it names a folder by chance."""
    if not hides_parameters(spec):
        return []
    paths = dict.fromkeys(point.path for point in points if _PARAMETERS.fullmatch(point.path))
    return [_Role(path, types=frozenset(["tmpfs"])) for path in paths]


def _by_path(points: Sequence[MountPoint]) -> dict[str, list[MountPoint]]:
    found: dict[str, list[MountPoint]] = {}
    for point in points:
        found.setdefault(point.path, []).append(point)
    return found


def _clean(path: str) -> str:
    return os.path.normpath("/" + path.lstrip("/"))
