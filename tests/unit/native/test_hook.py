"""CRIU's action-script: one question over a socket, and a no unless the answer is yes."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.native import HOOK

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {
    "CRTOOLS_SCRIPT_ACTION": "post-restore",
    "CRTOOLS_INIT_PID": "42",
    "CRTOOLS_IMAGE_DIR": "/proc/7/fd/5",
}


class Engine:
    """The other end of `hook.sock`, which answers every question with the same bytes."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self.asked: list[bytes] = []
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        here = os.open(path.parent, os.O_PATH)
        self._socket.bind(f"/proc/self/fd/{here}/{path.name}")  # the path may be too long
        os.close(here)
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                self.asked.append(lines.readline())
                connection.sendall(self._answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A container's folder, with the link that CRIU is given."""
    folder = tmp_path / "container"
    folder.mkdir()
    (folder / "hook").symlink_to(HOOK)
    return folder


@pytest.fixture
def yes(folder: Path) -> Iterator[Engine]:
    engine = Engine(folder / "hook.sock", b"ok\n")
    yield engine
    engine.close()


def hook(folder: Path, cwd: Path | None = None, path: str = "", **changes: str) -> tuple[int, str]:
    """Run the hook as CRIU does; returns its status and what it said."""
    env = {k: v for k, v in {**ENVIRONMENT, **changes}.items() if v}
    program = path or str(folder / "hook")
    ran = subprocess.run([program], env=env, cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.stdout == ""
    return ran.returncode, ran.stderr


def test_yes(folder: Path, yes: Engine) -> None:
    assert hook(folder) == (0, "")
    assert yes.asked == [b"post-restore 42 /proc/7/fd/5\n"]


def test_before_criu_knows_the_pid(folder: Path, yes: Engine) -> None:
    assert hook(folder, CRTOOLS_INIT_PID="", CRTOOLS_IMAGE_DIR="") == (0, "")
    assert yes.asked == [b"post-restore 0 -\n"]


def test_by_a_relative_path(folder: Path, yes: Engine) -> None:
    assert hook(folder, cwd=folder.parent, path="container/hook") == (0, "")
    assert len(yes.asked) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"memory could not be filled: EIO\n", "was refused: memory could not be filled: EIO"),
        (b"\n", "was refused: "),
        (b"okay\n", "was refused: okay"),
        (b"ok", "was refused: ok"),  # cut short: the engine died while it answered
        (b"", "no answer to post-restore: the connection was closed"),
    ],
)
def test_anything_else_is_no(folder: Path, answer: bytes, said: str) -> None:
    engine = Engine(folder / "hook.sock", answer)
    status, text = hook(folder)
    engine.close()
    assert status == 1
    assert said in text
    assert text.startswith("thaw-criu-hook: ")
    assert text.count("\n") == 1


def test_nobody_listens(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "hook.sock"))
        status, text = hook(folder)
    assert status == 1
    assert f"cannot connect to {folder}/hook.sock: Connection refused" in text


def test_no_socket(folder: Path) -> None:
    status, text = hook(folder)
    assert status == 1
    assert "hook.sock: No such file or directory (is the engine of this container alive?)" in text


def test_the_environments_socket_comes_second(folder: Path, tmp_path: Path, yes: Engine) -> None:
    (folder / "hook.sock").rename(tmp_path / "elsewhere.sock")
    assert hook(folder, THAW_HOOK_SOCKET=str(tmp_path / "elsewhere.sock")) == (0, "")
    assert len(yes.asked) == 1


def test_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("c" * 100) / ("d" * 100)
    folder.mkdir(parents=True)
    (folder / "hook").symlink_to(HOOK)
    engine = Engine(folder / "hook.sock", b"ok\n")
    assert hook(folder) == (0, "")
    engine.close()


def test_stages_that_nobody_wants(folder: Path, yes: Engine) -> None:
    (folder / "hook.actions").write_text("pre-dump\npost-restore\nnetwork-lock")
    assert hook(folder, CRTOOLS_SCRIPT_ACTION="pre-restore") == (0, "")
    assert hook(folder, CRTOOLS_SCRIPT_ACTION="post") == (0, "")
    assert yes.asked == []
    for action in ("post-restore", "network-lock"):
        assert hook(folder, CRTOOLS_SCRIPT_ACTION=action) == (0, "")
    assert len(yes.asked) == 2


def test_an_empty_list_wants_nothing(folder: Path) -> None:
    (folder / "hook.actions").touch()
    assert hook(folder) == (0, "")


def test_an_unreadable_list_wants_everything(folder: Path, yes: Engine) -> None:
    (folder / "hook.actions").mkdir()
    assert hook(folder) == (0, "")
    assert len(yes.asked) == 1


def test_without_criu(folder: Path) -> None:
    status, text = hook(folder, CRTOOLS_SCRIPT_ACTION="")
    assert status == 1
    assert "CRTOOLS_SCRIPT_ACTION is not set" in text
