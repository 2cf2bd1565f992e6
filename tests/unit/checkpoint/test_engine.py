"""A checkpoint as a whole; what runc and CRIU would do is played, the hook's questions included.

The images are none that could be indexed, so CRIU is asked twice if we were to write the memory;
that we can do that is shown in test_pages.py.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fakes.dumping import Criu, left, made, native, work_of
from fakes.snapshots import CONFIG, file_of, make
from fakes.work import runc_calls

from shim import __version__
from shim.checkpoint import engine
from shim.checkpoint.engine import checkpoint
from shim.checkpoint.pages import Parallel
from shim.criu import GHOST_LIMIT, NETWORK_LOCK
from shim.errors import (
    AlreadyExists,
    BadName,
    CheckpointFailed,
    FailedPrecondition,
    StoreFull,
    Unavailable,
    Unfit,
)
from shim.snapshot import lost
from shim.snapshot.index import Index
from shim.snapshot.pack import unpacked
from shim.snapshot.store import Store, Stores, check_whole, open_at
from shim.task.dumping import BEGUN, STOPPED, mark
from shim.work import Work


def test_into_the_store(work: Work, criu: Criu, tmp_path: Path) -> None:
    store = Stores.of(work.config).first.folder
    store.mkdir(mode=0o700)
    lost.note(store, work.details["name"], "a worker", "no room")
    reply = checkpoint(work)
    snapshot = made(tmp_path)
    assert not list((store / lost.FOLDER).iterdir()), "it can be done"
    assert "written" in snapshot.difference.names()
    assert not (snapshot.path / "rootfs").exists(), "packed"
    config = snapshot.config
    assert config.files["criu/core-1.img"] == file_of(b"core")
    assert {"index/index.json", "index/extents", "rootfs.tar.0000"} <= config.files.keys()
    assert config.pages == {}
    assert config.host.criu == "4.2.1"
    assert config.origin.args == ["sleep", "1000"]
    assert config.difference
    assert config.volumes == []
    assert (config.maker.by, config.maker.version) == ("thaw checkpoint", __version__)
    assert "/proc" in [point.path for point in config.mounts]
    assert config.sizes.keys() == {"criu", "pages", "rootfs", "volumes"}
    names = [span.name for span in config.spans]
    assert {"survey", "difference", "volumes", "dump", "index", "pack"} <= set(names)
    assert (reply["path"], reply["id"]) == (str(snapshot.path), snapshot.id)
    assert reply["bytes"] == sum(config.sizes.values()) > 0
    assert reply["seconds"] >= reply["frozen"] >= 0
    assert (snapshot.path / "config.json").stat().st_mode & 0o777 == 0o600


def test_pages_become_pieces_that_are_dealt_over_the_disks(
    work: Work, criu: Criu, tmp_path: Path
) -> None:
    criu.pages = {f"pages-{number}.img": b"x" * 4096 * number for number in (1, 2, 3, 10)}
    stripes = {"stripes": f"{tmp_path}/disk1:{tmp_path}/disk2"}
    checkpoint(native(work, "criu", config={**work.raw["config"], **stripes}))
    store = Store(tmp_path / "snapshots", [tmp_path / "disk1", tmp_path / "disk2"])
    snapshot = Stores([store]).open("one")
    check_whole(snapshot, skeleton=True)
    assert snapshot.config.pages == {f"{name}.0000": len(d) for name, d in criu.pages.items()}
    places = {name: snapshot.piece(name).parents[2].parent.name for name in snapshot.config.pages}
    assert places == {
        "pages-1.img.0000": "snapshots",
        "pages-2.img.0000": "disk1",
        "pages-3.img.0000": "disk2",
        "pages-10.img.0000": "snapshots",
    }
    assert not [name for name in os.listdir(snapshot.criu) if name.startswith("pages-")]
    with pytest.raises(Unfit, match="is missing"):
        check_whole(Stores([Store(store.folder)]).open("one"))


def test_nobody_else_can_write_it(work: Work, criu: Criu, tmp_path: Path) -> None:
    """Whatever the umask that containerd has given us."""
    before = os.umask(0)
    try:
        checkpoint(work)
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    for path in made(tmp_path).path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_shared_and_replaced(work: Work, criu: Criu, tmp_path: Path) -> None:
    first = checkpoint(work)["id"]
    second = checkpoint(native(work, "criu", replace=True, shared=True, by="auto"))["id"]
    store = Store(tmp_path / "snapshots")
    snapshot = Stores([store]).open("one")
    assert snapshot.id == second != first
    assert (snapshot.shared, store.snapshot(first).shared) == (True, False)
    assert snapshot.config.maker.by == "auto"


def test_it_is_noted(work: Work, criu: Criu, tmp_path: Path) -> None:
    log = {"audit.log": str(tmp_path / "audit.log")}
    asked = native(work, "criu", config={**work.raw["config"], **log})
    reply = checkpoint(asked)
    with pytest.raises(AlreadyExists):
        checkpoint(asked)
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["create", "create"]
    assert [line["outcome"] for line in lines] == ["made", "failed"]
    assert (lines[0]["id"], lines[0]["name"]) == (reply["id"], "one")
    assert lines[1]["reason"] == "AlreadyExists"
    assert "sleep" not in (tmp_path / "audit.log").read_text()


def test_it_runs_on_and_is_published_afterwards(work: Work, criu: Criu) -> None:
    checkpoint(work)
    assert "--leave-running" in criu.options
    assert criu.published == []


def test_one_that_shall_end_ends_after_the_publishing(
    tmp_path: Path, criu: Criu, work: Work
) -> None:
    """CRIU kills the tasks once the script has answered: the snapshot must be safe by then."""
    checkpoint(Work.parse({**work.raw, "exit": True}))
    assert "--leave-running" not in criu.options
    assert criu.published == ["one"]
    assert "criu/core-1.img" in made(tmp_path).config.files


def test_criu_is_steered(work: Work, criu: Criu) -> None:
    checkpoint(work)
    wanted = {"link-remap", NETWORK_LOCK, f"ghost-limit {GHOST_LIMIT}"}
    assert wanted <= set(criu.configuration)
    assert f"action-script {work.folder}/hook" in criu.configuration
    assert set(os.listdir(work.folder)) == {"criu.conf", BEGUN}
    assert (work.folder / "criu.conf").read_text() == ""
    assert {"--tcp-established", "--ext-unix-sk", "--file-locks"} <= set(criu.options)


@pytest.mark.parametrize("by", ["auto", "annotation"])
@pytest.mark.parametrize("when", ["before", "while"])
def test_one_that_is_told_to_stop(
    work: Work, criu: Criu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, when: str
) -> None:
    """Its pending signal would end each that is restored: the name must not stand for that."""

    def told(*_: object) -> None:
        mark(str(work.folder), STOPPED)

    if when == "while":
        monkeypatch.setattr(engine, "save_volumes", told)
    else:
        told()
    with pytest.raises(FailedPrecondition, match="has been told to stop"):
        checkpoint(native(work, "criu", by=by))
    assert len(criu.dumps) == (1 if when == "while" else 0)
    assert left(tmp_path) == []


@pytest.mark.parametrize("more", [{}, {"name": "", "path": "images"}])
def test_one_that_is_told_to_stop_is_dumped_by_hand(
    work: Work, criu: Criu, tmp_path: Path, more: dict[str, str]
) -> None:
    mark(str(work.folder), STOPPED)
    if more:
        more = {**more, "path": str(tmp_path / "images")}
    assert checkpoint(native(work, "criu", **more))["path"]


def test_what_was_of_one_moment_before_the_signal_is_kept(
    work: Work, criu: Criu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on while its snapshot is packed, and that may take minutes."""
    real = engine._pack

    def packed(*arguments: Any) -> None:
        mark(str(work.folder), STOPPED)
        real(*arguments)

    monkeypatch.setattr(engine, "_pack", packed)
    checkpoint(native(work, "criu", by="auto"))
    made(tmp_path)


@pytest.mark.parametrize("exit", [False, True])
def test_a_dump_that_fails(work: Work, criu: Criu, tmp_path: Path, exit: bool) -> None:
    criu.fails_after = "criu failed: type NOTIFY"
    with pytest.raises(CheckpointFailed, match="cannot dump c: criu failed: type NOTIFY") as caught:
        checkpoint(Work.parse({**work.raw, "exit": exit}))
    assert "(00.1) Error (x.c:1): the cause" in caught.value.message
    assert "runs on" in caught.value.hint
    assert left(tmp_path) == []
    kept = Path(work.bundle.path) / "criu-dump.log"
    assert "the cause" in kept.read_text()
    assert str(kept) in caught.value.message


def test_a_difference_that_cannot_be_copied(work: Work, criu: Criu, tmp_path: Path) -> None:
    """CRIU hears no, and the reason is ours, not CRIU's that somebody said no."""
    (tmp_path / "upper" / "written").unlink()
    (tmp_path / "upper").rmdir()
    with pytest.raises(CheckpointFailed, match=r"cannot copy .*upper"):
        checkpoint(work)
    assert criu.answer.startswith("CheckpointFailed: cannot copy")
    assert left(tmp_path) == []


def test_criu_writes_the_memory_if_it_is_told_to(work: Work, criu: Criu, tmp_path: Path) -> None:
    checkpoint(native(work, "criu"))
    assert criu.dumps == [[]]
    snapshot = made(tmp_path)
    index = Index.open(snapshot.index, snapshot.criu, snapshot.pages)
    assert "inventory.img" in index.reason, "the index says why there is no more of it"


@pytest.mark.parametrize("exit", [False, True])
def test_criu_writes_the_memory_if_we_cannot(
    work: Work, criu: Criu, tmp_path: Path, exit: bool
) -> None:
    """The first dump, into links, is refused while the worker is frozen, and nothing is left."""
    checkpoint(native(work, exit=exit))
    first, second = criu.dumps
    assert first[0] == "pages-1.img"
    assert second == []
    snapshot = made(tmp_path)
    assert sorted(os.listdir(snapshot.criu)) == ["core-1.img", "only-2"]
    assert Index.open(snapshot.index, snapshot.criu, snapshot.pages).reason
    assert {"pages", "index", "dump"} <= {span.name for span in snapshot.config.spans}
    assert ("one" in criu.published) == exit


def test_memory_that_cannot_be_written(
    work: Work, criu: Criu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then CRIU cannot do it either, and it is not asked to."""

    def full(_parallel: Parallel) -> None:
        raise OSError(errno.ENOSPC, "pages-1.img: No space left on device")

    monkeypatch.setattr(Parallel, "_save", full)
    with pytest.raises(StoreFull, match=r"snapshots: .*pages-1\.img: No space left") as refused:
        checkpoint(native(work))
    assert "runs on" in refused.value.message
    assert "thaw gc" in refused.value.hint
    assert len(criu.dumps) == 1
    assert left(tmp_path) == []


def test_memory_that_cannot_be_written_once_the_worker_runs_on(
    work: Work, criu: Criu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_parallel: Parallel) -> None:
        raise CheckpointFailed("cannot save memory: no space", hint="the container runs on")

    for done in ("_save", "ensure_saved"):
        monkeypatch.setattr(Parallel, done, lambda _: None)
    monkeypatch.setattr(Parallel, "finish", full)
    with pytest.raises(CheckpointFailed, match="no space"):
        checkpoint(native(work))
    assert criu.answer == "ok"
    assert len(criu.dumps) == 1
    assert left(tmp_path) == []


def test_a_name_that_is_taken(work: Work, criu: Criu, tmp_path: Path) -> None:
    checkpoint(work)
    before = made(tmp_path).id
    criu.options = []
    with pytest.raises(AlreadyExists):
        checkpoint(work)
    assert criu.options == [], "nothing was frozen for it"
    assert made(tmp_path).id == before


def test_a_name_that_is_taken_meanwhile(
    work: Work, criu: Criu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --exit, too, the container runs on: its snapshot is not there."""

    def rival(*_: object) -> None:
        make(Store(tmp_path / "snapshots"), "one")

    monkeypatch.setattr(engine, "save_volumes", rival)
    with pytest.raises(AlreadyExists, match="named one exists"):
        checkpoint(native(work, "criu", exit=True))
    assert criu.answer.startswith("AlreadyExists")
    assert made(tmp_path).config == CONFIG


@pytest.mark.parametrize("exit", [False, True])
@pytest.mark.parametrize("size", ["64k", "300k"])
def test_a_full_disk(work: Work, criu: Criu, tmp_path: Path, exit: bool, size: str) -> None:
    """Whatever it is that has no room: the container runs on, and nothing is left."""
    folder = tmp_path / "snapshots"
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", folder], check=True
    )
    try:
        (tmp_path / "upper" / "large").write_bytes(os.urandom(200_000))
        with pytest.raises(StoreFull, match=f"no room left in {folder}") as refused:
            checkpoint(native(work, "criu", exit=exit))
        assert "runs on" in refused.value.message
        assert criu.answer.startswith("CheckpointFailed") or not exit
        assert left(tmp_path) == []
        assert os.statvfs(folder).f_bfree >= int(size[:-1]) // 4 - 4
        (tmp_path / "upper" / "large").unlink()
        if size == "300k":
            checkpoint(native(work, "criu"))
            made(tmp_path)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_bad_name(work: Work, criu: Criu) -> None:
    with pytest.raises(BadName):
        checkpoint(Work.parse({**work.raw, "name": "a/b"}))
    assert criu.options == []


@pytest.mark.parametrize(
    ("namespaces", "words"),
    [
        ([{"type": "pid"}], "hostNetwork"),
        ([{"type": "network"}], "hostPID"),
        ([{"type": "pid", "path": "/some/pid"}, {"type": "network"}], "shared pid namespace"),
    ],
)
def test_what_could_never_be_restored(
    tmp_path: Path, criu: Criu, namespaces: list[dict[str, str]], words: str
) -> None:
    work = work_of(tmp_path, {"linux": {"namespaces": namespaces}})
    with pytest.raises(FailedPrecondition, match=words):
        checkpoint(work)
    assert criu.options == []
    assert not (tmp_path / "snapshots").exists()


def test_a_root_whose_changes_could_not_be_kept(tmp_path: Path, criu: Criu) -> None:
    bind = {"type": "bind", "source": "/x", "target": "", "options": ["rbind"]}
    with pytest.raises(FailedPrecondition, match="no writable overlay") as caught:
        checkpoint(work_of(tmp_path, rootfs=[bind]))
    assert "overlayfs" in caught.value.hint
    assert criu.options == []


def test_without_a_criu_that_does(work: Work, criu: Criu, tmp_path: Path) -> None:
    (tmp_path / "criu").write_text("#!/bin/sh\necho Version: 4.1\n")
    with pytest.raises(Unavailable, match=r"4\.1"):
        checkpoint(work)
    assert criu.options == []
    assert left(tmp_path) == []
    assert runc_calls(tmp_path) == []


@pytest.mark.parametrize("exit", [False, True])
def test_into_a_folder_that_containerd_named(
    work: Work, criu: Criu, tmp_path: Path, exit: bool
) -> None:
    images = tmp_path / "images"
    criu.pages = {"pages-1.img": b"x" * 4096}
    named = {"name": "", "path": str(images), "exit": exit, "work_path": str(tmp_path / "logs")}
    reply = checkpoint(native(work, "criu", **named, cgroups_mode="soft"))
    assert reply["path"] == str(images)
    assert (tmp_path / "logs" / "dump.log").exists()
    assert criu.options[criu.options.index("--manage-cgroups-mode") + 1] == "soft"
    assert (images / "core-1.img").read_bytes() == b"core"
    assert (images / "pages-1.img").read_bytes() == b"x" * 4096, "as CRIU would have written it"
    assert not [path for path in images.iterdir() if path.is_dir()], "CRI copies files only"
    assert not [path for path in images.iterdir() if path.is_symlink()]
    ours = unpacked(images)
    assert ours is not None
    snapshot = open_at(ours, images=images)
    check_whole(snapshot, skeleton=True)
    config = snapshot.config
    assert (config.difference, config.pages) == (False, {"pages-1.img": 4096})
    assert config.files["criu/core-1.img"] == file_of(b"core")
    assert not [name for name in config.files if "dump.log" in name]
    assert config.maker.by == "containerd"
    assert Index.open(ours / "index", images).reason
    assert not (tmp_path / "snapshots").exists()
    (images / "core-1.img").write_bytes(b"corf")
    with pytest.raises(Unfit, match=r"core-1\.img is not what it was"):
        check_whole(snapshot, skeleton=True)
