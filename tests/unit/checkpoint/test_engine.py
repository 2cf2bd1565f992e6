"""A checkpoint as a whole; what runc and CRIU would do is played, the hook's questions included.

The images are none that could be indexed, so CRIU is asked twice if we were to write the memory;
that we can do that is shown in test_pages.py.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes.work import make_work, runc_calls

from shim.checkpoint.engine import checkpoint
from shim.checkpoint.pages import Parallel
from shim.criu import GHOST_LIMIT, NETWORK_LOCK
from shim.errors import (
    AlreadyExists,
    BadName,
    CheckpointFailed,
    FailedPrecondition,
    RuntimeFailed,
    Unavailable,
)
from shim.runc import Runc
from shim.snapshot.index import Index
from shim.snapshot.pack import unpacked
from shim.snapshot.store import Store, check_whole, images_in, open_at
from shim.work import Work

SPEC: dict[str, Any] = {
    "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}]}
}


class Criu:
    """Plays `runc checkpoint`: images, a log, and the question at post-dump."""

    def __init__(self, folder: Path) -> None:
        self.options: list[str] = []
        self.configuration: list[str] = []
        self.answer = ""
        self.dumps: list[list[str]] = []  # what was in the folder for the images, each time
        self.fails_after: str | None = None  # what runc says once post-dump has been
        self.published: list[str] = []  # what there was then
        self._state = folder / "state"
        self._store = Store(str(folder / "snapshots"))

    def dump(self, options: Sequence[str]) -> None:
        self.options = list(options)
        self.configuration = (self._state / "criu.conf").read_text().splitlines()
        assert self._ask("pre-dump") == "ok"
        self.dumps.append(sorted(os.listdir(self.folder("--image-path"))))
        (self.folder("--image-path") / "core-1.img").write_bytes(b"core")
        (self.folder("--image-path") / f"only-{len(self.dumps)}").touch()
        (self.folder("--work-path") / "dump.log").write_text("(00.1) Error (x.c:1): the cause\n")
        self.answer = self._ask("post-dump")
        if self.answer != "ok":
            raise RuntimeFailed("criu failed: the script said no")
        self.published = self._store.names()
        if self.fails_after:
            raise RuntimeFailed(self.fails_after)

    def folder(self, option: str) -> Path:
        return Path(self.options[self.options.index(option) + 1])

    def _ask(self, stage: str) -> str:
        here = os.open(self._state, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as hook:
            hook.connect(f"/proc/self/fd/{here}/hook.sock")
            os.close(here)
            hook.sendall(f"{stage} 42\n".encode())
            return hook.makefile().readline().strip()


@pytest.fixture
def criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Criu:
    made = Criu(tmp_path)
    monkeypatch.setattr(Runc, "checkpoint", lambda _self, options: made.dump(options))
    return made


def work_of(folder: Path, spec: dict[str, Any] | None = None, **changes: Any) -> Work:
    asked = {
        "verb": "checkpoint",
        "name": "one",
        "path": "",
        "exit": False,
        "pid": os.getpid(),
        "cgroup_pids": [],
    }
    return make_work(folder, SPEC if spec is None else spec, **{**asked, **changes})


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A running container that has written a file; this process stands for its init."""
    made = work_of(tmp_path)
    (tmp_path / "upper" / "written").write_text("by the worker")
    return made


def test_into_the_store(work: Work, criu: Criu, tmp_path: Path) -> None:
    reply = checkpoint(work)
    store = Store(str(tmp_path / "snapshots"))
    snapshot = store.open("one")
    check_whole(snapshot, snapshot.criu)
    assert (snapshot.difference / "written").read_text() == "by the worker"
    config = snapshot.config
    assert config.images == {"core-1.img": 4}
    assert config.host.criu == "4.2.1"
    assert config.origin.args == ["sleep", "1000"]
    assert config.difference
    assert config.volumes == []
    assert "/proc" in [point.path for point in config.mounts]
    assert config.sizes.keys() == {"criu", "rootfs", "volumes"}
    assert {"survey", "difference", "volumes"} <= config.timeline.keys()
    assert reply["path"] == str(tmp_path / "snapshots" / "one")
    assert reply["bytes"] == sum(config.sizes.values()) > 0
    assert reply["seconds"] >= reply["frozen"] >= 0
    assert os.listdir(store.folder) == ["one"]


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
    config = Store(str(tmp_path / "snapshots")).open("one").config
    assert config.images == {"core-1.img": 4}


def test_criu_is_steered(work: Work, criu: Criu) -> None:
    checkpoint(work)
    wanted = {"link-remap", NETWORK_LOCK, f"ghost-limit {GHOST_LIMIT}"}
    assert wanted <= set(criu.configuration)
    assert f"action-script {work.folder}/hook" in criu.configuration
    assert os.listdir(work.folder) == ["criu.conf"]
    assert (work.folder / "criu.conf").read_text() == ""
    assert {"--tcp-established", "--ext-unix-sk", "--file-locks"} <= set(criu.options)


@pytest.mark.parametrize("exit", [False, True])
def test_a_dump_that_fails(work: Work, criu: Criu, tmp_path: Path, exit: bool) -> None:
    criu.fails_after = "criu failed: type NOTIFY"
    with pytest.raises(CheckpointFailed, match="cannot dump c: criu failed: type NOTIFY") as caught:
        checkpoint(Work.parse({**work.raw, "exit": exit}))
    assert "(00.1) Error (x.c:1): the cause" in caught.value.message
    assert "runs on" in caught.value.hint
    assert os.listdir(tmp_path / "snapshots") == []
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
    assert os.listdir(tmp_path / "snapshots") == []


def native(work: Work, engine: str = "native", **changes: Any) -> Work:
    """The same, with another engine for the memory."""
    config = {**work.raw["config"], "checkpoint.engine": engine}
    return Work.parse({**work.raw, "config": config, **changes})


def test_criu_writes_the_memory_if_it_is_told_to(work: Work, criu: Criu, tmp_path: Path) -> None:
    checkpoint(native(work, "criu"))
    assert criu.dumps == [[]]
    snapshot = Store(str(tmp_path / "snapshots")).open("one")
    made = Index.open(snapshot.path / "index", snapshot.criu)
    assert "inventory.img" in made.reason, "the index says why there is no more of it"


@pytest.mark.parametrize("exit", [False, True])
def test_criu_writes_the_memory_if_we_cannot(
    work: Work, criu: Criu, tmp_path: Path, exit: bool
) -> None:
    """The first dump, into links, is refused while the worker is frozen, and nothing is left."""
    checkpoint(native(work, exit=exit))
    first, second = criu.dumps
    assert first[0] == "pages-1.img"
    assert second == []
    snapshot = Store(str(tmp_path / "snapshots")).open("one")
    assert sorted(os.listdir(snapshot.criu)) == ["core-1.img", "only-2"]
    check_whole(snapshot, snapshot.criu)
    assert Index.open(snapshot.path / "index", snapshot.criu).reason
    assert {"pages", "index", "dump"} <= snapshot.config.timeline.keys()
    assert ("one" in criu.published) == exit


def test_memory_that_cannot_be_written(
    work: Work, criu: Criu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then CRIU cannot do it either, and it is not asked to."""

    def full(_parallel: Parallel) -> None:
        raise OSError(errno.ENOSPC, "pages-1.img: No space left on device")

    monkeypatch.setattr(Parallel, "_save", full)
    with pytest.raises(CheckpointFailed, match=r"pages-1\.img: No space left"):
        checkpoint(native(work))
    assert len(criu.dumps) == 1
    assert os.listdir(tmp_path / "snapshots") == []


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
    assert os.listdir(tmp_path / "snapshots") == []


def test_a_name_that_is_taken(work: Work, criu: Criu, tmp_path: Path) -> None:
    checkpoint(work)
    before = (tmp_path / "snapshots" / "one").stat().st_ino
    criu.options = []
    with pytest.raises(AlreadyExists):
        checkpoint(work)
    assert criu.options == [], "nothing was frozen for it"
    assert (tmp_path / "snapshots" / "one").stat().st_ino == before


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
    assert os.listdir(tmp_path / "snapshots") == []
    assert runc_calls(tmp_path) == []


@pytest.mark.parametrize("exit", [False, True])
def test_into_a_folder_that_containerd_named(
    work: Work, criu: Criu, tmp_path: Path, exit: bool
) -> None:
    images = tmp_path / "images"
    named = {"name": "", "path": str(images), "exit": exit, "work_path": str(tmp_path / "logs")}
    reply = checkpoint(Work.parse({**work.raw, **named, "cgroups_mode": "soft"}))
    assert reply["path"] == str(images)
    assert (tmp_path / "logs" / "dump.log").exists()
    assert criu.options[criu.options.index("--manage-cgroups-mode") + 1] == "soft"
    assert images_in(images) == {"core-1.img": 4}
    assert not [path for path in images.iterdir() if path.is_dir()], "CRI copies files only"
    assert not [path for path in images.iterdir() if path.is_symlink()]
    ours = unpacked(images)
    assert ours is not None
    config = open_at(ours).config
    assert (config.difference, config.images) == (False, {"core-1.img": 4})
    assert Index.open(ours / "index", images).reason
    assert not (tmp_path / "snapshots").exists()
