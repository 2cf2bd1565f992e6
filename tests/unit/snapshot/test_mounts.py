from __future__ import annotations

import os
from dataclasses import replace

import pytest
from fakes.snapshots import POINTS

from shim.snapshot.config import MountPoint
from shim.snapshot.mounts import differences, mounts_of, parse, without

TABLE = """\
22 1 0:21 / / rw,relatime - overlay overlay rw,lowerdir=/l
25 22 0:5 / /proc rw,nosuid,nodev shared:7 - proc proc rw
26 22 8:1 /x /a\\040b\\134c\\011d ro,relatime shared:3 master:2 - ext4 /dev/sda1 rw
27 22 8:1 /y /slave rw master:9 propagate_from:2 - ext4 /dev/sda1 rw
"""


def test_a_table() -> None:
    assert parse(TABLE) == [
        MountPoint("/", "overlay", ["relatime", "rw"], "private"),
        MountPoint("/a b\\c\td", "ext4", ["relatime", "ro"], "shared slave"),
        MountPoint("/proc", "proc", ["nodev", "nosuid", "rw"], "shared"),
        MountPoint("/slave", "ext4", ["rw"], "slave"),
    ]


@pytest.mark.parametrize("path", [r"/\040", "/ ", "/a\\b", "/\n", "/plain", r"/\134"])
def test_escapes_are_the_kernels(path: str) -> None:
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in path)
    (point,) = parse(f"1 0 0:1 / {escaped} rw - tmpfs none rw")
    assert point.path == path


def test_our_own_table() -> None:
    points = mounts_of(os.getpid())
    assert points == sorted(points, key=lambda point: (point.path, point.type))
    assert any(point.path == "/proc" and point.type == "proc" for point in points)


def test_equal_tables_differ_in_nothing() -> None:
    assert differences(POINTS, list(POINTS)) == []


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (POINTS[:1], "/data is not mounted"),
        (
            [POINTS[0], replace(POINTS[1], options=["relatime", "rw"])],
            "/data is ext4 relatime,rw slave, not ext4 relatime,ro slave",
        ),
        (
            [POINTS[0], replace(POINTS[1], propagation="shared")],
            "/data is ext4 relatime,ro shared, not ext4 relatime,ro slave",
        ),
        (
            [POINTS[0], replace(POINTS[1], type="tmpfs")],
            "/data is tmpfs relatime,ro slave, not ext4 relatime,ro slave",
        ),
        ([*POINTS, MountPoint("/x", "tmpfs", ["rw"], "private")], "/x is mounted too"),
    ],
)
def test_each_difference_is_one_sentence(found: list[MountPoint], complaint: str) -> None:
    assert differences(POINTS, found) == [complaint]


def test_a_second_mount_on_the_same_place(  # what is on top is what the worker sees
) -> None:
    over = MountPoint("/data", "tmpfs", ["rw"], "private")
    assert differences(POINTS, [*POINTS, over]) != []
    assert differences([*POINTS, over], POINTS) != []
    assert differences([*POINTS, POINTS[1]], POINTS) != []


def test_without() -> None:
    assert without(POINTS, {"/data"}) == POINTS[:1]
    assert without(POINTS, ()) == POINTS
