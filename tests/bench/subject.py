"""A snapshot to verify and seal: the memory of a worker that CRIU dumped, and an archive."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from shim.snapshot import indexing
from shim.snapshot.config import (
    FORMAT,
    Connections,
    File,
    Host,
    Maker,
    Origin,
    SnapshotConfig,
)
from shim.snapshot.pieces import Pieces
from shim.snapshot.snapshot import LAYOUT_INDEX, Snapshot, checksum, open_at

from .bare import Criu, Failed
from .programs import Worker, compiled

_ARCHIVE = "rootfs.tar.0000"
_CHUNK = 16 << 20
_ORIGIN = Origin(
    container="worker",
    image="",
    image_digest="",
    args=["worker"],
    cwd="/",
    terminal=False,
    user=[0, 0],
    capabilities={},
    no_new_privileges=True,
    seccomp="",
    apparmor="",
    selinux="",
    namespaces={},
    mounts=[],
    read_only=False,
)


def make(folder: Path, criu: Criu, size: int, archive: int) -> Snapshot:
    """A snapshot of `size` bytes of random memory and an archive of `archive` random bytes."""
    path = folder / "snapshot"
    for inner in ("criu", "pages"):
        (path / inner).mkdir(mode=0o700, parents=True)
    program = compiled("worker", folder)
    with Worker(program, folder, size, 1, huge=False) as worker:
        criu.dump(worker.pid, path / "criu")
    (path / "criu/dump.log").unlink()
    pages = Pieces([path / "pages"])
    pages.take(path / "criu")
    index = indexing.make(path / "criu", path / "index", pages=pages.folders)
    if index.reason:
        raise Failed(f"the images cannot be indexed: {index.reason}")
    _write_noise(path / _ARCHIVE, archive)
    _write_config(path, pages, criu.version)
    for made in (path, *path.rglob("*")):
        made.chmod(0o700 if made.is_dir() else 0o600)
    os.sync()
    return open_at(path)


def unseal(snapshot: Snapshot) -> None:
    """Make it what it was before it was sealed."""
    shutil.rmtree(snapshot.path / "blobs", ignore_errors=True)
    for name in (LAYOUT_INDEX, "oci-layout"):
        (snapshot.path / name).unlink(missing_ok=True)


def _write_noise(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.writelines(os.urandom(min(_CHUNK, size - at)) for at in range(0, size, _CHUNK))


def _write_config(path: Path, pages: Pieces, criu: str) -> None:
    files: dict[str, File] = {}
    for inner in ("criu", "index"):
        for file in sorted((path / inner).iterdir()):
            files[f"{inner}/{file.name}"] = checksum(file)
    files[_ARCHIVE] = checksum(path / _ARCHIVE)
    config = SnapshotConfig(
        format=FORMAT,
        created="2026-01-01T00:00:00Z",
        origin=_ORIGIN,
        host=Host(os.uname().machine, os.uname().release, criu, []),
        mounts=[],
        volumes=[],
        difference=True,
        connections=Connections(0, 0),
        files=files,
        pages={name: piece.stat().st_size for name, piece in pages.found().items()},
        maker=Maker(by="tests.bench.verify"),
    )
    (path / "config.json").write_text(config.to_json())
