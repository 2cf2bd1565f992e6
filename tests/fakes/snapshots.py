"""A snapshot that fits, to be changed in one place by each test."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from shim._native import lib
from shim.snapshot.config import (
    FORMAT,
    Connections,
    File,
    Host,
    Maker,
    MountPoint,
    Origin,
    SnapshotConfig,
    SpecMount,
)
from shim.snapshot.store import Store
from shim.timeline import Span

HOST = Host("x86_64", "6.1.0", "4.2", ["avx", "avx2", "sse2"], ["memfd", "rseq"], 2)
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
    env=["HOME", "TOKEN"],
    namespace="team-a",
    service_account="default",
    addresses=["eth0 10.0.0.7", "eth0 fd00::7"],
)
POINTS = [
    MountPoint("/", "overlay", ["relatime", "rw"], "private"),
    MountPoint("/data", "ext4", ["relatime", "ro"], "slave"),
]
EMPTY = b"\0" * 1024  # a tar with nothing in it


def crc32c(data: bytes) -> int:
    return lib.thaw_crc32c(0, data, len(data))


def file_of(data: bytes) -> File:
    """How a config describes a file with these bytes."""
    return File(len(data), crc32c(data))


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar with these files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


CONFIG = SnapshotConfig(
    format=FORMAT,
    created="2026-08-01T12:00:00Z",
    origin=ORIGIN,
    host=HOST,
    mounts=POINTS,
    volumes=["/dev/shm"],
    difference=True,
    connections=Connections(0, 0),
    files={
        "criu/core-1.img": file_of(b"xxxx"),
        "rootfs.tar.0000": file_of(EMPTY),
        "volumes/0.tar.0000": file_of(EMPTY),
    },
    pages={"pages-1.img.0000": 4096},
    sizes={"criu": 12, "rootfs": 0},
    maker=Maker("0.1.0", "node-1", "thaw checkpoint"),
    spans=[Span("dump", 0.5, 0.25)],
)


def config(**changes: Any) -> SnapshotConfig:
    """CONFIG with other values; those of `origin`, `host` by their own names."""
    origin = {k: changes.pop(k) for k in list(changes) if hasattr(ORIGIN, k) and k != "mounts"}
    made = replace(CONFIG, **changes)
    return replace(made, origin=replace(made.origin, **origin))


def write(
    folder: Path, what: SnapshotConfig = CONFIG, contents: dict[str, bytes] | None = None
) -> Path:
    """A whole snapshot in `folder`, which is made. `contents`: file → bytes, noted in its config.

    Other files have `x` as often as they are long, archives nothing.
    """
    contents = contents or {}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    listed = what.files | {name: file_of(data) for name, data in contents.items()}
    for name, file in listed.items():
        data = contents.get(name, EMPTY if ".tar." in name else b"x" * file.size)
        _put(folder / name, data)
    for name, size in what.pages.items():
        _put(folder / "pages" / name, b"x" * size)
    (folder / "criu").mkdir(exist_ok=True)
    (folder / "config.json").write_text(replace(what, files=listed).to_json())
    return folder


def make(
    store: Store,
    reference: str | None,
    what: SnapshotConfig = CONFIG,
    contents: dict[str, bytes] | None = None,
) -> str:
    """A snapshot in a store, of that name (None: without one); its id."""
    with store.draft(reference) as draft:
        write(draft.path, what, contents)
        return draft.id


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)
