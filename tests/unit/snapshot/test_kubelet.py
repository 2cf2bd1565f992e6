"""Kubelet's archives: what Thaw has put into one becomes a snapshot, all others are refused."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import snapshots
from fakes.archives import lay
from fakes.artifacts import files, left
from fakes.command import Thaw

from shim.cli import exits
from shim.snapshot.archive import Archive
from shim.snapshot.archive import pack as pack_folder
from shim.snapshot.pack import FOLDER, PACK, pack
from shim.snapshot.snapshot import check_whole, checksum

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="devices need root")

Members = dict[str, bytes]
PAGES = os.urandom(8192)


@pytest.fixture
def thaw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Thaw:
    """`thaw` with two empty stores."""
    return Thaw(tmp_path, capsys)


def layer() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("etc/")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("etc/.wh.motd"))
        info = tarfile.TarInfo("etc/new")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"new"))
    return made.getvalue()


@pytest.fixture
def members(tmp_path: Path) -> Members:
    """What is in an archive that kubelet has made of a container of ours."""
    images, saved = tmp_path / "images", tmp_path / "saved"
    (images / FOLDER / "volumes").mkdir(parents=True)
    (images / FOLDER / "index").mkdir()
    (images / FOLDER / "index" / "index.json").write_text("{}")
    saved.mkdir()
    (saved / "file").write_text("shared")
    pack_folder(saved, images / FOLDER / "volumes" / "0.tar")
    for name, data in {"core-1.img": b"core", "descriptors.json": b"[]"}.items():
        (images / name).write_bytes(data)
    (images / "pages-1.img").write_bytes(PAGES)
    found = {f"criu/{name}": checksum(images / name) for name in ("core-1.img", "descriptors.json")}
    part = images / FOLDER / "volumes" / "0.tar.0000"
    config = snapshots.config(
        files={**found, "volumes/0.tar.0000": checksum(part)},
        pages={"pages-1.img": len(PAGES)},
        difference=False,
    )
    (images / FOLDER / "config.json").write_text(config.to_json())
    pack(images)
    inside = {f"checkpoint/{path.name}": path.read_bytes() for path in sorted(images.iterdir())}
    others = {"config.dump": b"{}", "spec.dump": b"{}", "dump.log": b"", "stats-dump": b"x"}
    return {**others, **inside, "rootfs-diff.tar": layer()}


def write(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_a_snapshot(thaw: Thaw, tmp_path: Path, members: Members, compressed: bool) -> None:
    if compressed:
        members["rootfs-diff.tar"] = gzip.compress(members["rootfs-diff.tar"])
    said = thaw("import", str(write(tmp_path / "k.tar", members)), "worker", "-o", "json")
    assert (said.status, said.err.count("\n")) == (0, 1), said.err
    snapshot = thaw.store.snapshot(said.json["id"])
    check_whole(snapshot, skeleton=True)
    assert snapshot.config.difference
    assert snapshot.config.pages == {"pages-1.img.0000": len(PAGES)}
    assert snapshot.piece("pages-1.img.0000").read_bytes() == PAGES
    assert files(snapshot.criu) == {"core-1.img": b"core", "descriptors.json": b"[]"}
    (tmp_path / "upper").mkdir()
    lay(snapshot.difference, tmp_path / "upper", whiteouts=True)
    assert (tmp_path / "upper/etc/new").read_bytes() == b"new"
    assert stat.S_ISCHR((tmp_path / "upper/etc/motd").lstat().st_mode)
    assert snapshot.volume(0).names() == ["", "file"]
    assert sorted(os.listdir(snapshot.path)) == [
        "config.json", "criu", "index", "pages", "rootfs.tar.0000", "volumes",
    ]  # fmt: skip
    assert left(thaw.store) == []
    assert thaw("verify", "worker", "--seal").status == 0


def test_without_a_difference(thaw: Thaw, tmp_path: Path, members: Members) -> None:
    del members["rootfs-diff.tar"]
    assert thaw("import", str(write(tmp_path / "k.tar", members)), "worker").status == 0
    snapshot = thaw.store.snapshot(thaw.store.ids()[0])
    assert not snapshot.config.difference
    assert not snapshot.difference.exists()


def repacked(change: Callable[[Path], object]) -> Callable[[Members, Path], None]:
    """Our part, changed."""

    def apply(members: Members, folder: Path) -> None:
        place = folder / "repacked"
        (place / FOLDER).mkdir(parents=True)
        (place / PACK).write_bytes(members[f"checkpoint/{PACK}"])
        lay(Archive(place / PACK, whole=True), place / FOLDER)
        (place / PACK).unlink()
        change(place / FOLDER)
        pack(place)
        members[f"checkpoint/{PACK}"] = (place / PACK).read_bytes()

    return apply


def put(name: str, data: bytes) -> Callable[[Members, Path], None]:
    return lambda members, _: members.update({name: data})


def drop(name: str) -> Callable[[Members, Path], None]:
    return lambda members, _: members.__delitem__(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop(f"checkpoint/{PACK}"), "made without Thaw"),
        (drop("checkpoint/core-1.img"), "criu/core-1.img is missing"),
        (put("checkpoint/core-2.img", b""), "criu/core-2.img is missing, or too much"),
        (put("checkpoint/core-1.img", b"bad!"), "is not what it was"),
        (put("checkpoint/pages-1.img", b""), "pages files are not what they were"),
        (put("checkpoint/pages-2.img", b""), "pages files are not what they were"),
        (drop("checkpoint/pages-1.img"), "pages files are not what they were"),
        (put(f"checkpoint/{PACK}", b"junk"), "cut off"),
        (put("rootfs-diff.tar", b"junk" * 200), "no octal"),
        (put("rootfs-diff.tar", gzip.compress(layer())[:-30]), "rootfs-diff.tar"),
        (put("../outside", b""), "bad name"),
        (put("odd name", b""), "no part of a checkpoint"),
        (repacked(lambda ours: (ours / "config.json").write_text("{}")), "config.json"),
        (repacked(lambda ours: (ours / "config.json").unlink()), "config.json"),
        (repacked(lambda ours: (ours / "volumes/0.tar.0000").unlink()), "is missing"),
        (repacked(lambda ours: (ours / "volumes/x").symlink_to("/etc/passwd")), "no place"),
        (repacked(lambda ours: (ours / "volumes/1.tar.0000").write_bytes(b"")), "too much"),
    ],
)
def test_refused(
    thaw: Thaw,
    tmp_path: Path,
    members: Members,
    change: Callable[[Members, Path], None],
    words: str,
) -> None:
    change(members, tmp_path)
    said = thaw("import", str(write(tmp_path / "k.tar", members)), "worker")
    assert (said.status, said.out) == (exits.UNFIT, "")
    assert words in said.err
    assert (left(thaw.store), thaw.store.ids(), thaw.store.names()) == ([], [], {})


def test_a_name_twice(thaw: Thaw, tmp_path: Path, members: Members) -> None:
    path = write(tmp_path / "k.tar", members)
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("checkpoint/core-1.img"))
    said = thaw("import", str(path), "worker")
    assert said.status == exits.UNFIT
    assert "comes twice" in said.err
