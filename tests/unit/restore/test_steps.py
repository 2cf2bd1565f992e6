"""Each step done, undone, undone again, and undone without ever having been done."""

from __future__ import annotations

import os
import select
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.work import make_work, runc_calls

from shim.bundle import read_pid
from shim.errors import RestoreFailed
from shim.mount import mount_points
from shim.restore import plan as planning
from shim.restore import steps
from shim.restore.plan import Plan, SavedVolume
from shim.restore.steps import STEPS
from shim.runc import Runc
from shim.snapshot.config import MountPoint
from shim.snapshot.mounts import mounts_of
from shim.work import Work

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and owners need root")

PATIENCE = 15_000  # milliseconds
SPEC = {"linux": {"cgroupsPath": "/thaw-test-no-such-group", "namespaces": [{"type": "pid"}]}}


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    made = make_work(tmp_path, SPEC)
    yield made
    made.runc.delete(force=True)
    left = mount_points(str(tmp_path))
    subprocess.run(["umount", "-l", *reversed(left)], check=False)
    assert left == []


@pytest.fixture
def plan(work: Work, tmp_path: Path) -> Plan:
    """A plan that needs every step but those of the host name and the mounts."""
    snapshot = tmp_path / "snapshot"
    (snapshot / "rootfs" / "etc").mkdir(parents=True)
    (snapshot / "rootfs" / "etc" / "changed").write_text("by the worker")
    (snapshot / "volumes" / "0" / "inner").mkdir(parents=True)
    (snapshot / "volumes" / "0" / "inner" / "file").write_text("mapped")
    (tmp_path / "shm").mkdir()
    return replace(
        planning.bare(work, snapshot / "criu"),
        difference=snapshot / "rootfs",
        upper=work.upper,
        scratch=work.scratch,
        volumes=(SavedVolume(snapshot / "volumes" / "0", str(tmp_path / "shm"), "/dev/shm"),),
    )


def paths(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_every_step_can_be_undone_without_having_been_done(work: Work, plan: Plan) -> None:
    for _ in range(2):
        for step in reversed(STEPS):
            step.undo(work, plan)
    assert [path for path in (work.upper, work.scratch) if path is None or os.listdir(path)] == []


def test_every_step_has_a_name_of_its_own() -> None:
    assert len({step.name for step in STEPS}) == len(STEPS)
    order = [step.name for step in STEPS]
    assert order.index("difference") < order.index("rootfs") < order.index("criu")
    assert order.index("criu") < order.index("mounts")


def test_the_difference(work: Work, plan: Plan, tmp_path: Path) -> None:
    upper, scratch = tmp_path / "upper", tmp_path / "work"
    (scratch / "work").mkdir()
    os.chown(upper, 5, 6)
    os.chown(tmp_path / "snapshot" / "rootfs", 5, 6)
    for folder in (upper, tmp_path / "snapshot" / "rootfs", scratch):
        folder.chmod(0o751)
    steps.lay_difference(work, plan)
    assert paths(upper) == ["etc", "etc/changed"]
    for _ in range(2):
        steps.clear_upper(work, plan)
        assert paths(upper) == []
        assert paths(scratch) == []
    info = upper.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o751, 5, 6)
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o751


def test_an_upper_directory_that_a_killed_undo_had_removed(
    work: Work, plan: Plan, tmp_path: Path
) -> None:
    (tmp_path / "upper").rmdir()
    steps.clear_upper(work, plan)
    assert paths(tmp_path / "upper") == []


def test_no_difference(work: Work, plan: Plan, tmp_path: Path) -> None:
    plan = replace(plan, difference=None, upper=None, scratch=None)
    (tmp_path / "upper" / "theirs").touch()
    steps.lay_difference(work, plan)
    steps.clear_upper(work, plan)
    assert paths(tmp_path / "upper") == ["theirs"]


def test_volumes(work: Work, plan: Plan, tmp_path: Path) -> None:
    shm = tmp_path / "shm"
    (shm / "theirs").touch()
    steps.lay_volumes(work, plan)
    assert (shm / "inner" / "file").read_text() == "mapped"
    for _ in range(2):
        steps.clear_volumes(work, plan)
        assert paths(shm) == ["theirs"]
    assert (tmp_path / "snapshot" / "volumes" / "0" / "inner" / "file").exists()


@pytest.mark.parametrize("what", ["shm", "snapshot/volumes/0"])
def test_a_volume_that_is_a_link(work: Work, plan: Plan, tmp_path: Path, what: str) -> None:
    (tmp_path / what).rename(tmp_path / "moved")
    (tmp_path / what).symlink_to(tmp_path / "moved")
    with pytest.raises(NotADirectoryError):
        steps.lay_volumes(work, plan)


def test_the_root_file_system(work: Work, plan: Plan) -> None:
    steps.lay_difference(work, plan)
    steps.mount_rootfs(work, plan)
    rootfs = Path(work.bundle.rootfs)
    assert (rootfs / "etc" / "changed").read_text() == "by the worker"
    for _ in range(2):
        steps.unmount_rootfs(work, plan)
        assert list(rootfs.iterdir()) == []


def test_a_root_file_system_that_somebody_else_mounted(work: Work, plan: Plan) -> None:
    theirs = replace(work, rootfs=())
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", work.bundle.rootfs], check=True)
    steps.mount_rootfs(theirs, plan)
    steps.unmount_rootfs(theirs, plan)
    assert mount_points(work.bundle.rootfs) == [work.bundle.rootfs]
    subprocess.run(["umount", work.bundle.rootfs], check=True)


def test_criu_and_the_end_of_what_it_made(work: Work, plan: Plan, tmp_path: Path) -> None:
    steps.run_criu(work, plan)
    pid = read_pid(work.bundle.pid_file)
    verb, *words = runc_calls(tmp_path)[-1]
    assert verb == "restore"
    assert words[-1] == "c"
    assert "--detach" in words
    assert set(plan.runc_options) <= set(words)
    ended = os.pidfd_open(pid)
    steps.end_processes(work, plan)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    assert poll.poll(PATIENCE), "it is still running"
    os.close(ended)
    for _ in range(2):
        assert not os.path.exists(work.bundle.pid_file)
        assert not (work.folder / "criu-work").exists()
        steps.end_processes(work, plan)


def test_criu_is_told_its_options_for_this_once(
    work: Work, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    configuration = work.folder / "criu.conf"
    monkeypatch.setattr(Runc, "restore", lambda *_: told.append(configuration.read_text()))
    steps.run_criu(work, replace(plan, criu_options=("tcp-close", "link-remap")))
    assert told == ["tcp-close\nlink-remap\n"]
    assert configuration.read_text() == ""


@pytest.mark.parametrize("log", ["", "(00.1) fine\n(00.2) Error (mem.c:1): no pages\n"])
def test_criu_fails(work: Work, plan: Plan, tmp_path: Path, log: str) -> None:
    (tmp_path / "runc" / "fail" / "restore").write_text("criu failed: type NOTIFY errno 0")
    (work.folder / "criu-work").mkdir()
    if log:
        (work.folder / "criu-work" / "restore.log").write_text(log)
    with pytest.raises(RestoreFailed, match="criu failed: type NOTIFY") as caught:
        steps.run_criu(work, plan)
    assert ("Error (mem.c:1): no pages" in caught.value.message) == bool(log)
    assert ("criu check" in caught.value.hint) != bool(log)
    assert (work.folder / "criu.conf").read_text() == ""


@pytest.fixture
def restored(work: Work, plan: Plan) -> tuple[Work, Plan]:
    """This process stands for the restored one: its mounts are all right."""
    Path(work.bundle.pid_file).write_text(str(os.getpid()))
    return work, replace(plan, mounts=tuple(mounts_of(os.getpid())))


def test_mounts_as_they_must_be(restored: tuple[Work, Plan]) -> None:
    steps.check_mounts(*restored)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda mounts: mounts[1:], "is mounted too"),
        (
            lambda mounts: (*mounts, MountPoint("/thaw-none", "tmpfs", ["rw"], "private")),
            "/thaw-none is not mounted",
        ),
        (lambda mounts: (replace(mounts[0], options=["odd"]), *mounts[1:]), " odd "),
    ],
)
def test_mounts_as_they_must_not_be(
    restored: tuple[Work, Plan],
    change: Callable[[tuple[MountPoint, ...]], tuple[MountPoint, ...]],
    words: str,
) -> None:
    work, plan = restored
    with pytest.raises(RestoreFailed, match=f"mounts differ after the restore: .*{words}"):
        steps.check_mounts(work, replace(plan, mounts=change(plan.mounts)))


def test_masked_files_are_looked_at(restored: tuple[Work, Plan]) -> None:
    work, plan = restored
    fine = ("/dev/null", "/proc/thaw-none")
    steps.check_mounts(work, replace(plan, masked_files=fine))
    for path in ("/etc/passwd", "/dev/zero", "/proc"):
        with pytest.raises(RestoreFailed, match=f"{path} is not masked"):
            steps.check_mounts(work, replace(plan, masked_files=(*fine, path)))


def test_images_of_which_nothing_is_known_are_not_checked(work: Work, plan: Plan) -> None:
    steps.check_mounts(work, replace(plan, mounts=()))


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which namespaces got which name."""
    made: list[tuple[str, str]] = []
    monkeypatch.setattr(steps, "set_hostname", lambda *names: made.append(names))
    return made


def test_the_host_name(work: Work, plan: Plan, named: list[tuple[str, str]]) -> None:
    Path(work.bundle.pid_file).write_text("42")
    steps.name_host(work, plan)
    assert named == [], "the pod has none"
    steps.name_host(work, replace(plan, hostname="pod"))
    assert named == [("/proc/42/ns/uts", "pod")]


@pytest.mark.parametrize("path", [None, "", "/gone", "there"])
def test_the_pods_host_name_after_a_failure(
    tmp_path: Path, plan: Plan, named: list[tuple[str, str]], path: str | None
) -> None:
    """Only a namespace that others live in needs its name back."""
    if path == "there":
        path = str(tmp_path / "uts")
        Path(path).touch()
    entry = {"type": "uts"} if path is None else {"type": "uts", "path": path}
    (tmp_path / "again").mkdir()
    work = make_work(tmp_path / "again", {"linux": {"namespaces": [entry]}})
    for _ in range(2):
        steps.name_host_again(work, replace(plan, hostname="pod"))
    there = path is not None and os.path.exists(path) and path != ""
    assert named == ([(path, "pod")] * 2 if there else [])
