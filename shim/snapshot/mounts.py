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
    """What is not as it should be, one sentence each; empty if all is."""
    complaints = []
    for point in wanted:
        if point not in found:
            same = [other for other in found if other.path == point.path]
            complaints.append(
                f"{point.path} is {_describe(same[0])}, not {_describe(point)}"
                if same
                else f"{point.path} is not mounted"
            )
    paths = {point.path for point in wanted}
    complaints += [f"{p.path} is mounted too" for p in found if p.path not in paths]
    return complaints


def _describe(point: MountPoint) -> str:
    return f"{point.type} {','.join(point.options)} {point.propagation}"


def _propagation(tags: list[str]) -> str:
    words = [word for tag, word in (("shared", "shared"), ("master", "slave")) if tag in tags]
    return " ".join(words) or "private"


def _unescape(path: str) -> str:
    for code, character in _ESCAPES.items():
        path = path.replace(code, character)
    return path
