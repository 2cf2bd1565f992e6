"""CRIU's configuration for one run, and its action-script with the test in CRIU's place."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from fakes.host import open_fds

from shim.criu import CONFIG, LOG_TAIL, Steering, log_tail
from shim.native import HOOK


def ask(folder: Path, line: str) -> str:
    """Say what the hook says, and return the answer."""
    short = os.open(folder, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as hook:
        hook.connect(f"/proc/self/fd/{short}/hook.sock")
        os.close(short)
        hook.sendall(line.encode())
        hook.shutdown(socket.SHUT_WR)
        with hook.makefile() as said:
            return said.readline()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_options_only(tmp_path: Path) -> None:
    with Steering(tmp_path, ["link-remap", "ghost-limit 1M"], {}):
        assert (tmp_path / CONFIG).read_text() == "link-remap\nghost-limit 1M\n"
        assert names(tmp_path) == [CONFIG]
    assert (tmp_path / CONFIG).read_text() == "", "runc remembers its path: it must stay"


def test_an_action_is_asked(tmp_path: Path) -> None:
    pids: list[int] = []
    steering = Steering(tmp_path, ["x"], {"post-dump": pids.append})
    with steering:
        assert (tmp_path / CONFIG).read_text() == f"x\naction-script {tmp_path}/hook\n"
        assert os.readlink(tmp_path / "hook") == HOOK
        assert (tmp_path / "hook.actions").read_text() == "post-dump\n", "the others cost nothing"
        assert ask(tmp_path, "post-dump 42 /images\n") == "ok\n"
        assert ask(tmp_path, "other 0 -\n") == "ok\n"
    assert pids == [42]
    assert steering.failure is None
    assert names(tmp_path) == [CONFIG]


def test_an_action_that_fails_stops_criu(tmp_path: Path) -> None:
    def fail(_pid: int) -> None:
        raise RuntimeError("disk\nfull")

    steering = Steering(tmp_path, [], {"post-dump": fail})
    with steering:
        assert ask(tmp_path, "post-dump 0 -\n") == "RuntimeError: disk full\n"
    assert isinstance(steering.failure, RuntimeError)


def test_a_hook_that_goes_away_does_not_end_the_service(tmp_path: Path) -> None:
    done: list[int] = []
    with Steering(tmp_path, [], {"post-dump": done.append}) as steering:
        with socket.socket(socket.AF_UNIX) as hook:
            hook.connect(f"{tmp_path}/hook.sock")
        assert ask(tmp_path, "post-dump 7 -\n") == "ok\n"
    assert done == [7]
    assert steering.failure is None


@pytest.mark.skipif(not os.path.exists(HOOK), reason="the hook is not built")
def test_with_the_real_hook(tmp_path: Path) -> None:
    pids: list[int] = []
    with Steering(tmp_path, [], {"post-dump": pids.append}):
        env = {"CRTOOLS_SCRIPT_ACTION": "post-dump", "CRTOOLS_INIT_PID": "5"}
        assert subprocess.run([tmp_path / "hook"], env=env, check=False).returncode == 0
    assert pids == [5]


def test_a_folder_that_is_too_deep_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True)
    with Steering(folder, [], {"post-dump": lambda pid: None}):
        assert ask(folder, "post-dump 0 -\n") == "ok\n"


def test_what_a_run_that_was_killed_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "hook").symlink_to("/old")
    (tmp_path / "hook.sock").touch()
    (tmp_path / "hook.actions").write_text("old\n")
    with Steering(tmp_path, [], {"post-dump": lambda pid: None}):
        assert ask(tmp_path, "post-dump 0 -\n") == "ok\n"


def test_its_thread_ends_with_it(tmp_path: Path) -> None:
    """One that stayed in accept() could take the next one's questions."""
    threads, fds = set(threading.enumerate()), open_fds()
    for _ in range(20):
        with Steering(tmp_path, [], {"post-dump": lambda pid: None}):
            assert ask(tmp_path, "post-dump 0 -\n") == "ok\n"
    assert set(threading.enumerate()) <= threads
    assert open_fds(fds) == set()


def test_it_is_tidied_up_after_an_error(tmp_path: Path) -> None:
    def run() -> None:
        with Steering(tmp_path, ["x"], {"post-dump": lambda pid: None}):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - our own
        run()
    assert names(tmp_path) == [CONFIG]
    assert (tmp_path / CONFIG).read_text() == ""


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    lines = [f"(00.{number:06}) step {number}" for number in range(100)]
    log.write_text("\n".join(lines))
    assert log_tail(log).splitlines() == lines[-LOG_TAIL:]
    lines[10] = "(00.000010) Error (criu/files.c:1): it broke"
    lines[11] = "(00.000011) Warn  (criu/x.c:1): mind this"
    log.write_text("\n".join(lines))
    assert log_tail(log).splitlines() == lines[10:12], "its complaints, if it has any"


def test_a_log_without_end(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_bytes(b"\xff\xfe Error early\n" + b"x" * (1 << 20) + b"\nlast")
    assert log_tail(log).splitlines()[-1] == "last"
    assert "early" not in log_tail(log)
    assert log_tail(tmp_path / "none") == ""
