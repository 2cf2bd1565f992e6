"""Every byte of a snapshot is under some checksum, and the fault names its file or extent."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.images import BASE, noise, single
from fakes.snapshots import config, file_of, make, write

from shim.config import Config
from shim.errors import Damaged
from shim.snapshot import indexing
from shim.snapshot.artifact import seal
from shim.snapshot.pieces import Pieces
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.store import Store
from shim.snapshot.verification import Verdict, verify, work

SIZE = 6 << 20  # bytes of memory: two extents


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", [tmp_path / "stripe"])


@pytest.fixture
def snapshot(store: Store) -> Snapshot:
    """One with memory and an index, not sealed."""
    return with_memory(store, SIZE)


def with_memory(store: Store, size: int) -> Snapshot:
    with store.draft("one") as draft:
        images = single(draft.path / "criu", {BASE: noise(size)})
        Pieces(draft.pages).take(images)
        indexing.make(images, draft.path / "index", pages=draft.pages)
        skeleton = {
            f"{folder}/{path.name}": path.read_bytes()
            for folder in ("criu", "index")
            for path in (draft.path / folder).iterdir()
        }
        pages = {name: path.stat().st_size for name, path in Pieces(draft.pages).found().items()}
        made = config(files={}, pages={}, difference=True, volumes=[])
        tar = {"rootfs.tar.0000": bytes(1024)}
        write(draft.path, made, skeleton | tar)
        listed = {name: file_of(data) for name, data in (skeleton | tar).items()}
        document = replace(made, files=listed, pages=pages).to_json()
        (draft.path / "config.json").write_text(document)
        for path in draft.path.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
    return store.snapshot(draft.id)


def verified(snapshot: Snapshot, threads: int = 0) -> Verdict:
    """The verdict, and that as much was done as was announced."""
    announced = work(snapshot)
    told: list[int] = []
    verdict = verify(snapshot, Config(), threads, told.append)
    assert sum(told) == verdict.bytes
    if not verdict.faults:
        assert verdict.bytes == announced
    return verdict


def spoil(path: Path, at: int = -1) -> None:
    """Flip a bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_good(snapshot: Snapshot, threads: int) -> None:
    verdict = verified(snapshot, threads)
    assert (verdict.faults, verdict.notes) == ([], [])
    assert verdict.bytes > SIZE
    verdict.refuse()
    seal(snapshot)
    again = verified(snapshot, threads)
    assert again.faults == []
    assert again.bytes > verdict.bytes + SIZE, "blobs were read, too"


def test_every_file_in_every_place(snapshot: Snapshot) -> None:
    for name in snapshot.config.files:
        path = snapshot.file(name)
        before = path.read_bytes()
        for at in (0, len(before) // 2, -1):
            spoil(path, at)
            assert f"{path} has another checksum" in verified(snapshot).faults
            path.write_bytes(before)
    assert verified(snapshot).faults == []


def test_all_that_is_wrong_is_said(snapshot: Snapshot) -> None:
    names = ("criu/core-1.img", "rootfs.tar.0000")
    for name in names:
        spoil(snapshot.file(name))
    snapshot.file("criu/pstree.img").unlink()
    spoil(snapshot.piece("pages-1.img.0000"))
    faults = verified(snapshot).faults
    assert [f"{snapshot.file(name)} has another checksum" in faults for name in names] == [True] * 2
    assert any(f.startswith(f"{snapshot.file('criu/pstree.img')} is missing") for f in faults)
    assert any("pages-1.img.0000 at 4194304" in fault for fault in faults)
    with pytest.raises(Damaged, match=r"pstree\.img is missing"):
        verified(snapshot).refuse()


@pytest.mark.parametrize(
    ("at", "place"), [(4096, "at 4096 "), (5 << 20, "at 4194304 "), (-1, "at 4194304 ")]
)
def test_an_extent(snapshot: Snapshot, at: int, place: str) -> None:
    spoil(snapshot.piece("pages-1.img.0000"), at)
    (fault,) = verified(snapshot).faults
    assert fault.startswith(f"{snapshot.path}: pages-1.img.0000 {place}")
    assert fault.endswith("has another checksum")


def test_pages_that_criu_reads_as_they_are(store: Store) -> None:
    snapshot = with_memory(store, 8192)  # too little for an extent
    assert verified(snapshot).faults == []
    piece = snapshot.piece("pages-1.img.0000")
    spoil(piece, 5000)
    assert verified(snapshot).faults == [f"{piece} has another checksum"]


def test_sealed_blobs(snapshot: Snapshot) -> None:
    seal(snapshot)
    blobs = list((snapshot.path / "blobs" / "sha256").iterdir())
    for blob in blobs:
        inode, before = blob.stat().st_ino, blob.read_bytes()
        spoil(blob)
        faults = verified(snapshot).faults
        assert faults, blob
        config_file = snapshot.path / "config.json"
        if inode != config_file.stat().st_ino:  # the document is read before that
            assert any(blob.name in fault or blob.name in str(faults) for fault in faults)
        blob.write_bytes(before)
    assert verified(snapshot).faults == []


def test_a_blob_that_is_missing(snapshot: Snapshot) -> None:
    seal(snapshot)
    (snapshot.path / "blobs" / "sha256" / snapshot.digest.removeprefix("sha256:")).unlink()
    (fault,) = verified(snapshot).faults
    assert snapshot.digest.removeprefix("sha256:") in fault


def test_a_piece_that_is_cut_off(snapshot: Snapshot) -> None:
    path = snapshot.piece("pages-1.img.0000")
    os.truncate(path, 4096)
    assert f"{path} has 4096 bytes, it had {SIZE}" in verified(snapshot).faults


def test_others_can_write_to_it(snapshot: Snapshot) -> None:
    path = snapshot.file("criu/core-1.img")
    path.chmod(0o666)
    assert verified(snapshot).faults == [f"{path} can be written to by others than root"]


def test_pages_without_an_index(store: Store) -> None:
    snapshot = store.snapshot(make(store, "bare"))
    verdict = verified(snapshot)
    assert verdict.faults == []
    assert verdict.notes == [
        "pages have no checksums before it is sealed: there is no index",
    ]
    seal(snapshot)
    assert verified(snapshot).notes == []
    path = snapshot.piece("pages-1.img.0000")
    spoil(path)
    assert [fault.partition(" is not")[0] for fault in verified(snapshot).faults] == [str(path)]
