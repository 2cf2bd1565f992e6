"""Kubelet's archives: what Thaw has put into one becomes a snapshot, all others are refused."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import snapshots
from fakes.archives import END, extended, header, lay, member, records
from fakes.artifacts import files, left
from fakes.command import Thaw

from shim._native import lib
from shim.cli import exits
from shim.gpu.memory import index as gpu_index
from shim.snapshot.archive import Archive
from shim.snapshot.archive import pack as pack_folder
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.cuda import CudaProcess, CudaState, GpuRegion
from shim.snapshot.pack import FOLDER, PACK, pack
from shim.snapshot.snapshot import check_whole, checksum

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="devices need root")

Members = dict[str, bytes]
PAGES = os.urandom(8192)
GPU_PAGES = [os.urandom(8192), os.urandom(8192)]
GPU = "GPU-00000000-1111-2222-3333-444444444400"


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
    assert set(os.listdir(snapshot.path)) - {"lock"} == {
        "config.json", "criu", "index", "pages", "rootfs.tar.0000", "volumes",
    }  # fmt: skip
    assert left(thaw.store) == []
    assert thaw("verify", "worker", "--seal").status == 0


def with_gpu_memory(members: Members, folder: Path) -> bytes:
    """Two pieces of GPU memory, and the index that is about them."""
    for number in range(2):
        members[f"checkpoint/gpu-1.img.{number:04d}"] = GPU_PAGES[number]
    extents = b"".join(
        struct.pack(
            "<QQIIIHH", number * 8192, 0, 8192, lib.thaw_crc32c(0, data, 8192), 0, number, 1
        )
        for number, data in enumerate(GPU_PAGES)
    )

    def change(ours: Path) -> None:
        gpu_index.write(ours / "index", extents)
        config = SnapshotConfig.from_json((ours / "config.json").read_bytes(), "x")
        region = GpuRegion(1, 2 << 20, 0, GPU)
        config = replace(
            config,
            files={**config.files, "index/gpu": checksum(ours / "index" / "gpu")},
            pages={**config.pages, **{f"gpu-1.img.{n:04d}": 8192 for n in range(2)}},
            gpu=CudaState([CudaProcess(1, [], [region])], [GPU]),
        )
        (ours / "config.json").write_text(config.to_json())

    repacked(change)(members, folder)
    return extents


def test_one_with_gpu_memory(thaw: Thaw, tmp_path: Path, members: Members) -> None:
    extents = with_gpu_memory(members, tmp_path)
    assert thaw("import", str(write(tmp_path / "k.tar", members)), "worker").status == 0
    snapshot = thaw.store.snapshot(thaw.store.ids()[0])
    check_whole(snapshot, skeleton=True)
    found = gpu_index.stored(snapshot)
    assert found is not None
    assert found.extents == extents
    assert [path.read_bytes() for path in found.paths] == GPU_PAGES
    assert thaw("verify", "worker", "--seal").status == 0


@pytest.mark.parametrize("name", ["gpu-1.img.0001", "index/gpu"])
def test_gpu_memory_of_which_something_is_missing(
    thaw: Thaw, tmp_path: Path, members: Members, name: str
) -> None:
    with_gpu_memory(members, tmp_path)
    members.pop(f"checkpoint/{name}", None)
    if name == "index/gpu":
        (tmp_path / "again").mkdir()
        repacked(lambda ours: (ours / name).unlink())(members, tmp_path / "again")
    said = thaw("import", str(write(tmp_path / "k.tar", members)), "worker")
    assert said.status != 0
    assert "missing" in said.err or "not what they were" in said.err
    assert left(thaw.store) == []


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


def broken(data: bytes) -> bytes:
    """With a block of a kind that there is not, behind gzip's header of 10 bytes."""
    return data[:10] + b"\xff" + data[11:]


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
        (put("rootfs-diff.tar", broken(gzip.compress(layer()))), "rootfs-diff.tar"),
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


def link(name: bytes, target: Path) -> bytes:
    return extended(records(linkpath=os.fsencode(target))) + header(name, b"2")


VOLUMES = header(b"volumes/", b"5")
ENDLESS = extended(records(GNU__sparse__size=b"%d" % (1 << 62)))
# What is in our part of a checkpoint by mistake, or to get at somebody's folder: each is refused
HOSTILE: list[Callable[[Path], bytes]] = [
    lambda victim: link(b"volumes", victim),
    lambda victim: link(b"index", victim),
    lambda victim: link(b"config.json", victim / "file"),
    lambda victim: VOLUMES + link(b"volumes/0.tar.0000", victim / "file"),
    lambda _: VOLUMES + header(b"volumes/0.tar.0000", b"6"),
    lambda _: VOLUMES + header(b"volumes/0.tar.0000/", b"5"),
    lambda _: VOLUMES + member(b"volumes/0.tar.0000", b"x")
    + header(b"volumes/0.tar.0001", b"1", target=b"volumes/0.tar.0000"),
    lambda _: VOLUMES + member(b"volumes/x", b"x"),
    lambda _: header(b"more/", b"5"),
    lambda _: member(b"more", b"x"),
    lambda _: ENDLESS + header(b"config.json"),
    lambda _: VOLUMES + ENDLESS + header(b"volumes/0.tar.0000"),
]  # fmt: skip


@pytest.mark.parametrize("begin", HOSTILE)
@pytest.mark.parametrize("mode", [b"0000000\0", b"0007777\0"])
def test_our_part_by_somebody_else(
    thaw: Thaw, tmp_path: Path, members: Members, begin: Callable[[Path], bytes], mode: bytes
) -> None:
    """It may be laid out as it likes: nothing outside is ever opened, made or changed."""
    victim = tmp_path / "v"
    victim.mkdir(mode=0o751)
    (victim / "file").write_text("theirs")
    before = os.stat(victim), os.stat(victim / "file")
    config = snapshots.config(files={}, pages={}, difference=False).to_json().encode()
    pieces = [header(b"./", b"5", mode=mode), begin(victim), member(b"config.json", config), END]
    members[f"checkpoint/{PACK}"] = b"".join(pieces)
    said = thaw("import", str(write(tmp_path / "k.tar", members)), "worker")
    assert (said.status, said.out) == (exits.UNFIT, "")
    assert "no place in a snapshot" in said.err
    for path, was in zip((victim, victim / "file"), before, strict=True):
        now = os.stat(path)
        assert (now.st_mode, now.st_uid, now.st_ctime_ns, now.st_nlink) == (
            was.st_mode, was.st_uid, was.st_ctime_ns, was.st_nlink,
        )  # fmt: skip
    assert (left(thaw.store), thaw.store.ids()) == ([], [])


def test_owners_and_modes_of_our_part_are_not_taken(
    thaw: Thaw, tmp_path: Path, members: Members
) -> None:
    def change(ours: Path) -> None:
        for path in (ours / "volumes", ours / "volumes/0.tar.0000", ours / "config.json"):
            os.chown(path, 5, 6)
            path.chmod(0o7777)

    repacked(change)(members, tmp_path)
    assert thaw("import", str(write(tmp_path / "k.tar", members)), "worker").status == 0
    snapshot = thaw.store.snapshot(thaw.store.ids()[0])
    for path in (snapshot.path / "volumes", snapshot.path / "volumes/0.tar.0000"):
        info = path.stat()
        assert (info.st_mode & 0o7777 & ~0o100 & ~0o600, info.st_uid, info.st_gid) == (0, 0, 0)


def test_a_name_twice(thaw: Thaw, tmp_path: Path, members: Members) -> None:
    path = write(tmp_path / "k.tar", members)
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("checkpoint/core-1.img"))
    said = thaw("import", str(path), "worker")
    assert said.status == exits.UNFIT
    assert "comes twice" in said.err
