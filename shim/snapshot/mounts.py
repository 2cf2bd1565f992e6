"""The mounts that a process sees, for recording at the dump and checking after the restore."""

from __future__ import annotations

from collections.abc import Collection

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
