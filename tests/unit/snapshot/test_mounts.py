from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.snapshots import POINTS

from shim.snapshot.config import MountPoint
from shim.snapshot.mounts import (
    differences,
    inside,
    missing,
    mounts_of,
    parse,
    unexpected,
    without,
)

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


# Of a container that runc 1.1.5 has made for SPEC, on cgroup v1.
REAL = """\
1 0 8:1 /r / rw,relatime - ext4 /dev/sda rw
2 1 0:40 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
3 1 0:41 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
4 3 0:42 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw,gid=5,mode=620,ptmxmode=666
5 3 0:39 / /dev/mqueue rw,nosuid,nodev,noexec,relatime - mqueue mqueue rw
6 1 0:43 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
7 6 0:44 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
8 7 0:30 / /sys/fs/cgroup/cpu ro,nosuid,nodev,noexec,relatime - cgroup cgroup rw,cpu
9 7 0:31 / /sys/fs/cgroup/systemd ro,nosuid,nodev,noexec,relatime - cgroup systemd rw,name=systemd
10 1 8:1 /usr /usr ro,relatime - ext4 /dev/sda rw
11 10 8:9 / /usr/local ro,relatime - xfs /dev/sdb rw
12 1 8:1 /token /run/secrets/token ro,relatime - tmpfs tmpfs rw
13 3 8:1 /shm /dev/shm ro,relatime - ext4 /dev/sda rw
14 2 0:40 /bus /proc/bus ro,nosuid,nodev,noexec,relatime - proc proc rw
15 2 0:40 /sys /proc/sys ro,nosuid,nodev,noexec,relatime - proc proc rw
16 2 0:45 / /proc/acpi ro,relatime - tmpfs tmpfs ro
17 2 0:41 /null /proc/keys rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
18 2 0:5 /null /proc/timer_list rw,nosuid - devtmpfs udev rw
19 6 0:46 / /sys/firmware ro,relatime - tmpfs tmpfs ro
"""


def mount(destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": "/s", "options": list(options)}


SPEC: dict[str, Any] = {
    "root": {"path": "rootfs"},
    "mounts": [
        mount("/proc/", "proc"),
        mount("/dev", "tmpfs"),
        mount("/dev/pts", "devpts"),
        mount("/dev/mqueue", "mqueue"),
        mount("/sys", "sysfs", "ro"),
        mount("/sys/fs/cgroup", "cgroup", "ro"),
        mount("/usr", "bind", "rbind", "ro"),
        mount("/run/secrets/token", "bind", "rbind", "ro"),
        mount("/dev/shm", "none", "bind", "ro"),
    ],
    "linux": {
        "maskedPaths": [
            "/proc/acpi",
            "/proc/keys",
            "/proc/scsi",
            "/proc/timer_list",
            "/sys/firmware",
        ],
        "readonlyPaths": ["/proc/bus", "/proc/sys"],
    },
}


def with_point(path: str, kind: str = "tmpfs", *options: str) -> list[MountPoint]:
    return [*parse(REAL), MountPoint(path, kind, list(options or ("rw",)), "private")]


def changed(path: str, **values: Any) -> list[MountPoint]:
    return [replace(p, **values) if p.path == path else p for p in parse(REAL)]


def test_a_real_container_is_explained() -> None:
    assert unexpected(SPEC, parse(REAL)) == []
    assert missing(SPEC, parse(REAL), exists=lambda path: path != "/proc/scsi") == []


@pytest.mark.parametrize(
    ("points", "complaint"),
    [
        (with_point("/etc"), "/etc is mounted too"),
        (with_point("/dev/shm/x"), "/dev/shm/x is mounted too"),  # the bind is not recursive
        (with_point("/dev/pts/x"), "/dev/pts/x is mounted too"),
        (with_point("/dev/console", "devpts"), "/dev/console is mounted too"),
        (with_point("/dev/null", "devtmpfs"), "/dev/null is mounted too"),
        (with_point("/usr", "ext4", "ro"), "/usr is mounted again"),
        (with_point("/proc/sys", "proc", "ro"), "/proc/sys is mounted again"),
        (with_point("/sys/fs/cgroup/x", "ext4"), "/sys/fs/cgroup/x is mounted too"),
        (changed("/usr", options=["rw"]), "/usr is ext4 rw, not a bind ro"),
        (changed("/sys", options=["rw"]), "/sys is sysfs rw, not sysfs ro"),
        (
            changed("/proc", type="tmpfs"),
            "/proc is tmpfs nodev,noexec,nosuid,relatime,rw, not proc",
        ),
        (changed("/proc/sys", options=["rw"]), "/proc/sys is proc rw, not a bind ro"),
        (changed("/proc/keys", type="proc"), "/proc/keys is proc nosuid,rw, not devtmpfs/tmpfs"),
        (changed("/sys/fs/cgroup", type="cgroup2"), None),
        (changed("/sys/fs/cgroup/cpu", options=["rw"]), "/sys/fs/cgroup/cpu is mounted too"),
    ],
    ids=lambda value: value or "none" if not isinstance(value, list) else "",
)
def test_what_the_spec_cannot_explain(points: list[MountPoint], complaint: str | None) -> None:
    if complaint is None:  # a cgroup of version 2 can be read-only itself, so it has to be
        (complaint,) = unexpected(SPEC, points)
        assert complaint.endswith("not cgroup/cgroup2/tmpfs ro")
    else:
        assert unexpected(SPEC, points) == [complaint]


def test_what_else_runc_makes() -> None:
    console = with_point("/dev/console", "devpts")
    assert unexpected({**SPEC, "process": {"terminal": True}}, console) == []
    linux = {**SPEC["linux"], "namespaces": [{"type": "user"}], "devices": [{"path": "/dev/x"}]}
    for path in ("/dev/null", "/dev/x"):
        assert unexpected({**SPEC, "linux": linux}, with_point(path, "devtmpfs")) == []


def test_what_nvidias_hook_mounts() -> None:
    """For the driver's parameters: a folder of its own, by chance, and a file over another."""
    args = ["nvidia-cdi-hook", "disable-device-node-modification"]
    hook = {"path": "/usr/bin/nvidia-cdi-hook", "args": args}
    live = {**SPEC, "hooks": {"createContainer": [hook]}}
    scratch, params = f"/run/nvidia-ctk-hook/{'0' * 36}", "/proc/driver/nvidia/params"
    for path in (scratch, params, "/var/run/nvidia-ctk-hook"):
        assert unexpected(live, with_point(path)) == []
        assert unexpected(SPEC, with_point(path)) == [f"{path} is mounted too"]
        assert unexpected(live, with_point(path, "ext4")) == [f"{path} is ext4 rw, not tmpfs"]
        twice = [*with_point(path), with_point(path)[-1]]
        assert unexpected(live, twice) == [f"{path} is mounted again"]
    for path in ("/run/nvidia-ctk-hook/../x", "/proc/driver/nvidia", f"{scratch}/x"):
        assert unexpected(live, with_point(path)) == [f"{path} is mounted too"]


def test_a_read_only_root() -> None:
    live = {**SPEC, "root": {"readonly": True}}
    assert unexpected(live, parse(REAL)) == ["/ is ext4 relatime,rw, not a bind ro"]
    assert unexpected(live, changed("/", options=["ro"])) == []


@pytest.mark.parametrize("path", ["/proc/sys", "/proc/acpi", "/usr", "/sys/firmware"])
def test_what_is_missing(path: str) -> None:
    words = {"/proc/sys": "read-only", "/usr": "mounted"}.get(path, "hidden")
    points = without(parse(REAL), {path})
    assert missing(SPEC, points, exists=lambda at: at == path) == [f"{path} is not {words}"]


def test_what_cannot_be_seen_is_not_missing() -> None:
    """Without /sys there is nothing to hide in it."""
    live = {
        **SPEC,
        "mounts": [m for m in SPEC["mounts"] if not m["destination"].startswith("/sys")],
    }
    points = [point for point in parse(REAL) if not point.path.startswith("/sys")]
    assert missing(live, points, exists=lambda path: path != "/proc/scsi") == []


def test_destinations_that_are_links(tmp_path: Path) -> None:
    for folder in ("run", "var", "a"):
        (tmp_path / folder).mkdir()
    (tmp_path / "var/run").symlink_to("../run")
    (tmp_path / "a/up").symlink_to("../../../../..")
    (tmp_path / "a/away").symlink_to("/a/up/./var")
    (tmp_path / "loop").symlink_to("loop")
    resolve = inside(str(tmp_path))
    assert resolve("/var/run/secrets") == "/run/secrets"
    assert resolve("/a/away/run/x/../y") == "/run/y"
    assert resolve("/loop/x") == "/loop/x"
    mounts = [m for m in SPEC["mounts"] if "token" not in m["destination"]]
    mounts.append(mount("/var/run/secrets/token", "bind", "rbind", "ro"))
    live = {**SPEC, "mounts": mounts}
    assert unexpected(live, parse(REAL)) != []
    assert unexpected(live, parse(REAL), resolve) == []
    assert missing(live, parse(REAL), resolve, lambda path: False) == []


def test_an_empty_spec_explains_the_root_alone() -> None:
    assert unexpected({}, parse(REAL)[:1]) == []
    assert len(unexpected({}, parse(REAL))) == 18
    assert missing({}, []) == []
