"""A snapshot that fits, to be changed in one place by each test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from shim.snapshot.config import (
    FORMAT,
    Connections,
    Host,
    MountPoint,
    Origin,
    SnapshotConfig,
    SpecMount,
)

HOST = Host("x86_64", "6.1.0", "4.2", ["avx", "avx2", "sse2"])
ORIGIN = Origin(
    container="worker",
    image="registry/worker:1",
    image_digest="sha256:aa",
    args=["python3", "serve.py"],
    cwd="/srv",
    terminal=False,
    user=[1000, 1000, 5, 6],
    capabilities={"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"]},
    no_new_privileges=True,
    seccomp="5ecc",
    apparmor="cri-containerd",
    selinux="",
    namespaces={
        "pid": "new",
        "network": "joined",
        "ipc": "joined",
        "uts": "joined",
        "mount": "new",
        "user": "host",
        "cgroup": "new",
        "time": "host",
    },
    mounts=[
        SpecMount("/data", "bind", ["rbind", "ro", "rprivate"]),
        SpecMount("/dev/shm", "bind", ["rbind", "rw"]),
        SpecMount("/proc", "proc", ["nodev", "noexec", "nosuid"]),
    ],
    read_only=False,
)
POINTS = [
    MountPoint("/", "overlay", ["relatime", "rw"], "private"),
    MountPoint("/data", "ext4", ["relatime", "ro"], "slave"),
]
CONFIG = SnapshotConfig(
    format=FORMAT,
    created="2026-08-01T12:00:00Z",
    origin=ORIGIN,
    host=HOST,
    mounts=POINTS,
    volumes=["/dev/shm"],
    difference=True,
    connections=Connections(0, 0),
    images={"core-1.img": 4, "pages-1.img": 8},
    sizes={"criu": 12, "rootfs": 0},
    timeline={"dump": 0.25},
)


def config(**changes: Any) -> SnapshotConfig:
    """CONFIG with other values; those of `origin`, `host` by their own names."""
    origin = {k: changes.pop(k) for k in list(changes) if hasattr(ORIGIN, k) and k != "mounts"}
    made = replace(CONFIG, **changes)
    return replace(made, origin=replace(made.origin, **origin))


def write(folder: Path, what: SnapshotConfig = CONFIG) -> Path:
    """A whole snapshot in `folder`, which is made."""
    (folder / "criu").mkdir(parents=True)
    for name, size in what.images.items():
        (folder / "criu" / name).write_bytes(b"x" * size)
    for number in range(len(what.volumes)):
        (folder / "volumes" / str(number)).mkdir(parents=True)
    if what.difference:
        (folder / "rootfs").mkdir()
    (folder / "config.json").write_text(what.to_json())
    return folder
