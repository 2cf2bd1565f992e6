"""`delete` as containerd runs it: after every task, after a crash, and again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes.pod import FAKES, make_bundle
from fakes.settled import PATIENCE

from shim.config import Config
from shim.proto.known import nanoseconds
from shim.proto.task_pb import DeleteResponse
from shim.trial import REQUEST, folder_of

DATA = Path(__file__).parents[1] / "data" / "bootstrap-2.3"
SHIM = "import sys; from shim import bootstrap; sys.exit(bootstrap.main(sys.argv[1:]))"


class Left:
    """A container whose shim is gone: a bundle, its options, and a process under the fake runc."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = make_bundle(folder / "task/c1", ["sleep", "1000"], {})
        self.state = folder / "state/k8s.io/c1"
        self.state.mkdir(parents=True)
        (folder / "runc").mkdir()
        values: dict[str, Any] = {
            "BinaryName": str(FAKES / "runc.py"),
            "Root": str(folder / "runc"),
            "state": str(folder / "state"),
        }
        (self.bundle / "options.json").write_text(json.dumps(Config(values).as_dict()))
        (self.state / "criu.conf").touch()
        self.process = subprocess.Popen(["sleep", "1000"])
        (self.bundle / "init.pid").write_text(str(self.process.pid))
        place = folder / "runc/k8s.io/c1"
        place.mkdir(parents=True)
        (place / "pid").write_text(str(self.process.pid))

    def delete(self, *more: str, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
        words = ["-namespace", "k8s.io", "-address", "/a", "-id", "c1", *more, "delete"]
        return subprocess.run(
            [sys.executable, "-c", SHIM, *words],
            cwd=cwd or self.bundle,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )


@pytest.fixture
def left(tmp_path: Path) -> Any:
    made = Left(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def test_everything_goes(left: Left) -> None:
    before = time.time_ns()
    done = left.delete()
    assert (done.returncode, done.stderr) == (0, b"")
    answer = DeleteResponse.decode(done.stdout)
    assert (answer.pid, answer.exit_status) == (left.process.pid, 137)
    assert answer.exited_at is not None
    assert before <= nanoseconds(answer.exited_at) <= time.time_ns()
    assert left.process.wait(PATIENCE) == -signal.SIGKILL
    assert not (left.folder / "runc/k8s.io/c1").exists()
    assert list((left.folder / "state").iterdir()) == []
    assert left.bundle.is_dir(), "the bundle is containerd's"


def test_the_answer_has_the_shape_of_the_captured_one(left: Left) -> None:
    captured = DeleteResponse.decode((DATA / "delete.stdout.bin").read_bytes())
    answer = DeleteResponse.decode(left.delete().stdout)
    assert answer.exit_status == captured.exit_status
    filled = {name for name in ("pid", "exit_status", "exited_at") if getattr(captured, name)}
    assert {name for name in ("pid", "exit_status", "exited_at") if getattr(answer, name)} == filled
    again = DeleteResponse(
        pid=answer.pid, exit_status=answer.exit_status, exited_at=answer.exited_at
    )
    assert answer == again, "nothing beside those"


def test_again(left: Left) -> None:
    assert left.delete().returncode == 0
    done = left.delete()
    assert (done.returncode, done.stderr) == (0, b"")
    assert DeleteResponse.decode(done.stdout).exit_status == 137


@pytest.mark.parametrize("way", ["flag", "beside"])
def test_from_elsewhere(left: Left, way: str) -> None:
    """1.6 runs it in the bundle; later versions name it, or run it beside."""
    if way == "flag":
        done = left.delete("-bundle", str(left.bundle), cwd=left.folder)
    else:
        (left.folder / "task/other").mkdir()
        done = left.delete(cwd=left.folder / "task/other")
    assert done.returncode == 0
    assert DeleteResponse.decode(done.stdout).pid == left.process.pid


def test_a_bundle_that_is_gone(left: Left) -> None:
    done = left.delete("-bundle", str(left.folder / "none"), cwd=left.folder)
    assert done.returncode == 0
    answer = DeleteResponse.decode(done.stdout)
    assert (answer.pid, answer.exit_status) == (0, 137)
    assert left.process.poll() is None


def test_one_part_that_fails_keeps_none_of_the_others(left: Left) -> None:
    (left.folder / "runc/fail").mkdir()
    (left.folder / "runc/fail/delete").write_text("runc is unwell")
    done = left.delete()
    assert done.returncode == 0
    assert b"runc is unwell" in done.stderr
    assert DeleteResponse.decode(done.stdout).exit_status == 137, "stdout is the answer alone"
    assert list((left.folder / "state").iterdir()) == []


def test_a_living_shim_keeps_its_socket(left: Left) -> None:
    """The pod's other containers still need it."""
    path = left.folder / "socket"
    (left.bundle / "address").write_text(f"unix://{path}")
    with socket.socket(socket.AF_UNIX) as shim:
        shim.bind(str(path))
        shim.listen()
        assert left.delete().returncode == 0
        assert path.exists()
    left.delete()
    assert not path.exists(), "a dead one's goes"
    assert left.delete().returncode == 0


def test_a_living_shim_that_is_busy_keeps_it_too(left: Left) -> None:
    path = left.folder / "socket"
    (left.bundle / "address").write_text(f"unix://{path}")
    with socket.socket(socket.AF_UNIX) as shim, socket.socket(socket.AF_UNIX) as first:
        shim.bind(str(path))
        shim.listen(0)
        first.connect(str(path))
        assert left.delete().returncode == 0
        assert path.exists(), "nobody accepts just now, but it is there"


def test_a_restore_that_was_cut_off_is_undone_by_an_engine(left: Left) -> None:
    (left.state / "restoring").write_text("no json")
    done = left.delete()
    assert done.returncode == 0
    assert done.stderr, "what the engine says is told"
    assert list((left.folder / "state").iterdir()) == []


def test_a_trial_that_was_cut_off_is_ended_by_an_engine(left: Left) -> None:
    trial = Path(folder_of(str(left.state)))
    trial.mkdir()
    (trial / REQUEST).write_text("no json")
    done = left.delete()
    assert done.returncode == 0
    assert done.stderr, "what the engine says is told"
    assert not left.state.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_mounts_of_the_root_file_system(left: Left) -> None:
    rootfs = left.bundle / "rootfs"
    subprocess.run(["mount", "-t", "tmpfs", "none", rootfs], check=True)
    try:
        assert left.delete().returncode == 0
        assert str(rootfs) not in Path("/proc/self/mountinfo").read_text()
    finally:
        subprocess.run(["umount", "-q", rootfs], check=False)
