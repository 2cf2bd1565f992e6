"""Looking into images: what is there, what is not, and bytes that are no images."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from fakes import looked
from fakes.images import BASE, Images, single, vma
from fakes.looked import ANONYMOUS, CODE, HEAP, HEAP_SIZE, KIB, SHARED, SHARED_SIZE, STACK

from shim.errors import Unfit
from shim.proto import criu_pb as pb
from shim.snapshot import images as criu
from shim.snapshot.indexing import make
from shim.snapshot.inspection import Inspection, Mapping, Process, look, summed
from shim.snapshot.resident import PRIVATE, Bytes, Space


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with an index beside them; nobody changes them."""
    images = looked.images(tmp_path_factory.mktemp("worker") / "criu")
    make(images, images.parent / "index")
    return images


@pytest.fixture(scope="module")
def found(worker: Path) -> Inspection:
    return look(worker, worker.parent / "index")


def process(found: Inspection, pid: int) -> Process:
    return next(p for p in found.processes if p.pid == pid)


def mapping(found: Inspection, pid: int, start: int) -> Mapping:
    return next(m for m in process(found, pid).mappings if m.start == start)


def test_the_processes(found: Inspection) -> None:
    server, worker, dead = found.processes
    assert (server.pid, server.parent, server.threads) == (1, 0, [1, 2])
    assert (server.name, server.executable) == ("server", "/usr/bin/server")
    assert (server.directory, server.state, server.user) == ("/srv", "alive", 0)
    assert (server.seccomp, server.no_new_privileges) == ("", True)
    assert (worker.parent, worker.state, worker.user, worker.group) == (1, "stopped", 1000, 100)
    assert (worker.seccomp, worker.no_new_privileges) == ("filter", True)
    assert (dead.state, dead.user, dead.mappings, dead.files) == ("zombie", None, [], [])
    assert found.notes == []
    assert found.gpu == []


def test_the_memory(found: Inspection) -> None:
    kinds = {m.start: m.kind for m in process(found, 1).mappings}
    wanted = ("heap", "anonymous", "file-private", "memfd", "stack")
    assert kinds == dict(zip((HEAP, ANONYMOUS, CODE, SHARED, STACK), wanted, strict=True))
    assert mapping(found, 1, HEAP).bytes == Bytes(HEAP_SIZE, HEAP_SIZE, HEAP_SIZE, 0, 0)
    assert mapping(found, 1, ANONYMOUS).bytes == Bytes(
        1024 * KIB, 1024 * KIB, 512 * KIB, 0, 512 * KIB
    )
    assert mapping(found, 1, CODE).bytes == Bytes(8 * KIB, 4 * KIB, 0, 4 * KIB, 0)
    code = mapping(found, 1, CODE)
    assert (code.protection, code.name) == ("r-xp", "/usr/bin/server")
    assert process(found, 1).extents == 2
    private = [m.bytes for m in process(found, 1).mappings if m.space == Space(PRIVATE, 1)]
    assert process(found, 1).bytes == summed(private)


def test_shared_memory_counts_once(found: Inspection) -> None:
    for pid in (1, 7):
        seen = mapping(found, pid, SHARED)
        assert (seen.kind, seen.name, seen.protection) == ("memfd", "weights", "rw-s")
        assert seen.bytes.resident == SHARED_SIZE
    (shared,) = found.shared
    assert (shared.name, shared.pids, shared.extents) == ("weights", [1, 7], 1)
    assert shared.bytes == Bytes(SHARED_SIZE, SHARED_SIZE, SHARED_SIZE, 0, 0)
    assert found.total.resident == sum(p.bytes.resident for p in found.processes) + SHARED_SIZE
    assert found.extents == 3


def test_mounts(found: Inspection) -> None:
    root, data = found.mounts
    assert (root.path, root.type, root.source, root.external) == ("/", "overlayfs", "overlay", "")
    assert (data.path, data.type, data.external) == ("/data", "fuse.x", "/data")


def test_without_an_index(worker: Path) -> None:
    found = look(worker)
    assert found.notes == ["there is no index: CRIU restores all memory"]
    assert found.total.left == found.total.resident > 0
    assert found.total.bulk == found.extents == 0


def test_an_index_that_cannot_be_used(worker: Path, tmp_path: Path) -> None:
    shutil.copytree(worker.parent / "index", tmp_path / "index")
    (tmp_path / "index" / "extents").write_bytes(b"")
    found = look(worker, tmp_path / "index")
    assert len(found.notes) == 1
    assert "cut off" in found.notes[0]
    assert found.total.left == found.total.resident


def test_images_that_have_no_index(tmp_path: Path) -> None:
    """What CRIU alone restores is shown all the same, and why."""
    images = single(tmp_path / "criu", {BASE: bytes(64 * KIB)})
    (images / "parent").symlink_to("/")
    make(images, tmp_path / "index")
    found = look(images, tmp_path / "index")
    assert any("parent" in note for note in found.notes)
    assert found.processes[0].bytes.resident == 64 * KIB


@pytest.mark.parametrize(
    ("status", "flags", "kind"),
    [
        (0x201 | 1 << 3, 0x22, "vdso"),
        (0x201 | 1 << 12, 0x22, "vvar"),
        (1 << 2, 0, "vsyscall"),
        (0x201 | 1 << 1, 0x22, "stack"),
        (0x201, 0x40022, "hugetlb"),
        (0x101, 0x21, "shared"),
        (0x101 | 1 << 10, 0x1, "sysv"),
        (0x81, 0x1, "file-shared"),
        (0x201, 0x22, "anonymous"),
    ],
)
def test_kinds_of_mappings(tmp_path: Path, status: int, flags: int, kind: str) -> None:
    images = single(tmp_path, {}, vma(BASE, 4 * KIB, status=status, flags=flags))
    assert look(images).processes[0].mappings[0].kind == kind


def test_nothing_but_what_a_process_needs(tmp_path: Path) -> None:
    """No files, no cores, no ids: bare images say little, and no more is made up."""
    made = Images(tmp_path)
    made.process(1, [vma(BASE, 4 * KIB)], {})
    made.write()
    (tmp_path / "core-1.img").unlink()
    (one,) = look(tmp_path).processes
    assert (one.name, one.state, one.user, one.files, one.executable) == (
        "",
        "unknown",
        None,
        [],
        "",
    )


def test_shared_memory_that_nobody_maps(tmp_path: Path) -> None:
    made = Images(tmp_path)
    made.process(1, [vma(BASE, 4 * KIB)], {})
    made.shared(3, {0: bytes(8 * KIB)})
    (shared,) = look(made.write()).shared
    assert (shared.kind, shared.pids, shared.bytes.resident) == ("unmapped", [], 8 * KIB)


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(Unfit, match="no CRIU images"):
        look(tmp_path)
    with pytest.raises(Unfit, match="no CRIU images"):
        look(tmp_path / "none")


@pytest.mark.parametrize("name", ["pstree.img", "mm-1.img", "files.img", "fdinfo-2.img"])
def test_an_image_of_another_kind(worker: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(worker, tmp_path / "criu")
    shutil.copy(worker / "core-1.img", tmp_path / "criu" / name)
    with pytest.raises(Unfit, match=name):
        look(tmp_path / "criu")


def test_a_link_is_not_followed(worker: Path, tmp_path: Path) -> None:
    shutil.copytree(worker, tmp_path / "criu")
    (tmp_path / "criu" / "files.img").unlink()
    (tmp_path / "criu" / "files.img").symlink_to(worker / "files.img")
    with pytest.raises(Unfit, match=r"files\.img"):
        look(tmp_path / "criu")


def test_whatever_the_bytes_are(worker: Path, tmp_path: Path) -> None:
    """Flipped, cut off or made up: it is looked into, or Unfit."""
    images = tmp_path / "criu"
    shutil.copytree(worker, images)
    dice = random.Random(1)
    refused = 0
    for path in sorted(p for p in images.iterdir() if not p.name.startswith("pages-")):
        good = path.read_bytes()
        for _ in range(8):
            bad = bytearray(good)
            for _ in range(dice.randint(1, 3)):
                bad[dice.randrange(len(bad))] = dice.randrange(256)
            path.write_bytes(bytes(bad[: dice.choice([len(bad), dice.randrange(len(bad))])]))
            try:
                look(images, worker.parent / "index")
            except Unfit:
                refused += 1
        path.write_bytes(good)
    assert refused > 15
    assert look(images, worker.parent / "index").notes == [], "and all is as it was"


def test_the_words_of_untrusted_images_are_text(tmp_path: Path) -> None:
    images = looked.images(tmp_path)
    core = pb.Core(tc=pb.TaskCore(comm=b"\xff\n\0"))
    made = Images(tmp_path)
    made.put("core-1.img", criu.CORE, core)
    assert look(images).processes[0].name == os.fsdecode(b"\xff\n")
