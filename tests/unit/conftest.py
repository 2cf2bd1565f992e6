"""A pod without containerd, for every room; what the daemon keeps for a process is put back."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import VARIABLE, FakeCuda
from fakes.host import Node
from fakes.pod import FAKES, Pod, documents
from hypothesis import settings

from shim import log
from shim.mount import unmount_all
from shim.task import engine

PR_SET_CHILD_SUBREAPER = 36

# A change is judged by the same examples every time; at a desk they are new ones every time.
settings.register_profile("ci", derandomize=True, deadline=None)  # machines are noisy
settings.register_profile("desk", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "desk")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """The daemon's services in this process; no callback of its loop may have failed."""
    made = Node(tmp_path)
    yield made
    made.stop()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert not made.errors, made.errors


@pytest.fixture
def pod(node: Node, tmp_path: Path) -> Iterator[Pod]:
    """A Task service on `node` with the fake runc."""
    made = Pod(node, tmp_path)
    yield made
    made.release()
    unmount_all(str(tmp_path))  # control directories of containers that nobody has deleted


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A CUDA driver without a GPU, and this process in its world, in which there is nobody yet."""
    made = FakeCuda(tmp_path / "cuda")
    monkeypatch.setenv(VARIABLE, str(made.folder))
    return made


class Plays:
    """What the fake engine will do, verb by verb, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.set("undo", play="reply", reply={})

    def set(self, verb: str, **play: object) -> None:
        (self._folder / f"{verb}.json").write_text(json.dumps(play))

    def fail(self, verb: str, leaf: str, message: str = "on purpose", hint: str = "") -> None:
        error = {"class": leaf, "message": message, "hint": hint}
        self.set(verb, play="reply", reply={"error": error})

    @property
    def seen(self) -> list[dict[str, Any]]:
        return documents(self._folder / "seen")

    @property
    def verbs(self) -> list[str]:
        return [request["verb"] for request in self.seen]


@pytest.fixture
def plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plays:
    """A fake engine in the place of the real one."""
    folder = tmp_path / "plays"
    folder.mkdir()
    monkeypatch.setattr(engine, "PROGRAM", str(FAKES / "engine.py"))
    monkeypatch.setenv("FAKE_ENGINE", str(folder))
    return Plays(folder)


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Calling it gives what has been logged, from debug on."""
    fd = os.memfd_create("log")
    monkeypatch.setattr(log, "_sink", fd)
    monkeypatch.setattr(log, "_threshold", 0)
    yield lambda: os.pread(fd, 1 << 20, 0).decode()
    os.close(fd)
