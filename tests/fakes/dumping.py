"""A dump without a container: what runc and CRIU would do is played, the hook's questions included.

The images are none that could be indexed, so CRIU is asked twice if we were to write the memory.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes.work import make_work
from shim.errors import RuntimeFailed
from shim.snapshot.store import Snapshot, Store, Stores, check_whole
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
        self.pages: dict[str, bytes] = {}  # what it writes as files of pages
        self._state = folder / "state"
        self._store = Store(str(folder / "snapshots"))

    def dump(self, options: Sequence[str]) -> None:
        self.options = list(options)
        self.configuration = (self._state / "criu.conf").read_text().splitlines()
        assert self._ask("pre-dump") == "ok"
        self.dumps.append(sorted(os.listdir(self.folder("--image-path"))))
        (self.folder("--image-path") / "core-1.img").write_bytes(b"core")
        (self.folder("--image-path") / f"only-{len(self.dumps)}").touch()
        for name, data in self.pages.items():
            (self.folder("--image-path") / name).write_bytes(data)
        (self.folder("--work-path") / "dump.log").write_text("(00.1) Error (x.c:1): the cause\n")
        self.answer = self._ask("post-dump")
        if self.answer != "ok":
            raise RuntimeFailed("criu failed: the script said no")
        self.published = list(self._store.names())
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


def made(folder: Path) -> Snapshot:
    """The snapshot `one`, which is the only thing in the store, and whole."""
    store = Store(folder / "snapshots")
    snapshot = Stores([store]).open("one")
    check_whole(snapshot, skeleton=True)
    assert store.ids() == [snapshot.id]
    assert not [name for name in os.listdir(store.folder) if name.startswith(".")]
    return snapshot


def left(folder: Path) -> list[str]:
    """What of a failed checkpoint is in the store."""
    store = Store(folder / "snapshots")
    hidden = [name for name in os.listdir(store.folder) if name.startswith(".")]
    return [*store.ids(), *store.names(), *hidden]


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


def native(work: Work, engine: str = "native", **changes: Any) -> Work:
    """The same, with another engine for the memory."""
    config = {**changes.pop("config", work.raw["config"]), "checkpoint.engine": engine}
    return Work.parse({**work.raw, "config": config, **changes})
