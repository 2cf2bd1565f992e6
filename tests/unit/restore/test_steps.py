"""Each step done, undone, undone again, and undone without ever having been done."""

from __future__ import annotations

import fcntl
import os
import select
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.settled import PATIENCE, alive, eventually
from fakes.work import make_work, runc_calls

from shim.bundle import read_pid
from shim.errors import Damaged, RestoreFailed, Unfit
from shim.mount import mount_points
from shim.restore import plan as planning
from shim.restore import stages, steps
from shim.restore.adoption import Adoption
from shim.restore.bulk import Memory
from shim.restore.device import Device
from shim.restore.plan import Plan, SavedVolume
from shim.runc import Runc
from shim.snapshot.archive import Archive, pack
from shim.snapshot.store import Store
from shim.task.dumping import is_marked, mark
from shim.task.restoration import RUNS
from shim.timeline import Timeline
from shim.work import Work

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and owners need root")

STEPS = steps.steps_of(Memory(None), Adoption(), Device())
SPEC = {"linux": {"cgroupsPath": "/thaw-test-no-such-group", "namespaces": [{"type": "pid"}]}}


@pytest.fixture(autouse=True)
def mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake runtime mounts nothing; see test_frozen.py."""
    monkeypatch.setattr(stages, "check_mounts", lambda *_: None)
    monkeypatch.setattr(stages, "exchange", lambda *_: None)  # init is of this machine


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
    snapshot, saved = tmp_path / "snapshots" / "snapshots" / "1", tmp_path / "saved"
    for folder in ("criu", "pages", "volumes"):
        (snapshot / folder).mkdir(mode=0o700, parents=True)
    (snapshot / "criu" / "core-1.img").write_bytes(b"core")
    (snapshot / "pages" / "pages-1.img.0000").write_bytes(b"a" * 4096)
    (snapshot / "pages" / "pages-1.img.0001").write_bytes(b"b" * 4096)
    (saved / "rootfs" / "etc").mkdir(parents=True)
    (saved / "rootfs" / "etc" / "changed").write_text("by the worker")
    os.mknod(saved / "rootfs" / "etc" / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.chown(saved / "rootfs", 5, 6)
    (saved / "rootfs").chmod(0o751)
    (saved / "volumes" / "inner").mkdir(parents=True)
    (saved / "volumes" / "inner" / "file").write_text("mapped")
    pack(saved / "rootfs", snapshot / "rootfs.tar")
    pack(saved / "volumes", snapshot / "volumes" / "0.tar")
    (tmp_path / "shm").mkdir()
    return replace(
        planning.bare(work, snapshot / "criu"),
        pages=(snapshot / "pages",),
        assembled=planning.assembled_images(work),
        difference=Archive(snapshot / "rootfs.tar"),
        upper=work.upper,
        scratch=work.scratch,
        volumes=(
            SavedVolume(Archive(snapshot / "volumes" / "0.tar"), str(tmp_path / "shm"), "/dev/shm"),
        ),
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
    assert order.index("hold") < order.index("criu") < order.index("introduce")
    assert order.index("introduce") < order.index("complete") < order.index("canary")
    assert order[-1] == "release"
    assert order.index("assemble") < order.index("criu") < order.index("disassemble")


def test_the_difference(work: Work, plan: Plan, tmp_path: Path) -> None:
    upper, scratch = tmp_path / "upper", tmp_path / "work"
    (scratch / "work").mkdir()
    os.chown(upper, 5, 6)
    for folder in (upper, scratch):
        folder.chmod(0o751)
    steps.lay_difference(work, plan)
    assert paths(upper) == ["etc", "etc/changed", "etc/gone"]
    assert (upper / "etc" / "changed").read_text() == "by the worker"
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
    assert plan.volumes[0].saved.exists()


def test_a_volume_that_is_a_link(work: Work, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "shm").rename(tmp_path / "moved")
    (tmp_path / "shm").symlink_to(tmp_path / "moved")
    with pytest.raises(NotADirectoryError):
        steps.lay_volumes(work, plan)
    assert paths(tmp_path / "moved") == []


def test_whiteouts_have_no_place_in_a_volume(work: Work, plan: Plan, tmp_path: Path) -> None:
    assert plan.difference is not None
    volume = replace(plan.volumes[0], saved=plan.difference)
    with pytest.raises(Unfit, match="'etc/gone' is a whiteout"):
        steps.lay_volumes(work, replace(plan, volumes=(volume,)))
    assert paths(tmp_path / "shm") == []


def test_a_damaged_difference_is_laid_nowhere(work: Work, plan: Plan, tmp_path: Path) -> None:
    assert plan.difference is not None
    (part,) = plan.difference.parts()
    os.truncate(part, 700)
    with pytest.raises(Damaged, match=r"rootfs\.tar: .*cut off"):
        steps.lay_difference(work, plan)
    assert paths(tmp_path / "upper") == []


def test_pages_files_are_put_together(work: Work, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "snapshots" / ".draft-criu-c").mkdir()  # of an engine that was killed
    (tmp_path / "snapshots" / ".draft-criu-c" / "old").touch()
    steps.assemble(work, plan)
    assert plan.assembled == tmp_path / "snapshots" / ".draft-criu-c"
    assert paths(plan.assembled) == ["core-1.img", "lock", "pages-1.img"]
    assert (plan.assembled / "pages-1.img").read_bytes() == b"a" * 4096 + b"b" * 4096
    assert (plan.assembled / "core-1.img").read_bytes() == b"core"
    Store(tmp_path / "snapshots").sweep()
    assert plan.assembled.exists(), "whoever sweeps drafts leaves it alone"
    for _ in range(2):
        steps.remove_assembled(work, plan)
        assert not plan.assembled.exists()
    assert (tmp_path / "snapshots/snapshots/1/criu/core-1.img").exists()


def test_a_sweeper_comes_before_the_lock(
    work: Work, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan.assembled is not None
    store, flock = Store(plan.assembled.parent), fcntl.flock
    swept: list[int] = []

    def late(fd: int, how: int) -> None:
        if not swept:
            swept.append(fd)
            store.sweep()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    steps.assemble(work, plan)
    monkeypatch.undo()
    store.sweep()
    assert paths(plan.assembled) == ["core-1.img", "lock", "pages-1.img"]
    steps.remove_assembled(work, plan)


def test_what_a_killed_engine_put_together_is_swept(work: Work, plan: Plan) -> None:
    steps.assemble(work, plan)
    assert plan.assembled is not None
    os.close(steps._locks.pop(plan.assembled))
    Store(plan.assembled.parent).sweep()
    assert not plan.assembled.exists()


def test_nothing_to_put_together(work: Work, plan: Plan, tmp_path: Path) -> None:
    steps.assemble(work, replace(plan, assembled=None))
    steps.remove_assembled(work, replace(plan, assembled=None))
    assert os.listdir(tmp_path / "snapshots") == ["snapshots"]


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
    steps.assemble(work, plan)
    steps.run_criu(work, plan, Memory(None), Device(), Timeline())
    assert is_marked(str(work.folder), RUNS), "what is written from now on may be theirs"
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
    assert poll.poll(PATIENCE * 1000), "it is still running"
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
    plan = replace(plan, assembled=None, criu_options=("tcp-close", "link-remap"))
    with pytest.raises(RestoreFailed, match="CRIU did not stop"):
        steps.run_criu(work, plan, Memory(None), Device(), Timeline())
    assert told == [f"tcp-close\nlink-remap\naction-script {work.folder}/hook\n"]
    assert configuration.read_text() == ""


def test_what_is_refused_before_a_process_runs(
    work: Work, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pagemaps come once it is known that CRIU stops; then it does, and hears of it."""
    (plan.images / "pagemap-1.img").touch()
    seen: list[tuple[int, bool]] = []

    def refuse(_spec: object, _plan: Plan, init: int) -> None:
        there = (planning.linked_images(work) / "pagemap-1.img").exists()
        seen.append((init, there))
        raise RestoreFailed("mounts differ", hint="a hole")

    monkeypatch.setattr(stages, "check_mounts", refuse)
    with pytest.raises(RestoreFailed, match="mounts differ") as caught:
        steps.run_criu(work, replace(plan, assembled=None), Memory(None), Device(), Timeline())
    assert caught.value.hint == "a hole"
    [(init, there)] = seen
    assert there
    assert not is_marked(str(work.folder), RUNS)
    eventually(lambda: not alive(init))  # it is killed, and not waited for
    steps.end_processes(work, plan)


@pytest.mark.parametrize("log", ["", "(00.1) fine\n(00.2) Error (mem.c:1): no pages\n"])
def test_criu_fails(work: Work, plan: Plan, tmp_path: Path, log: str) -> None:
    (tmp_path / "runc" / "fail" / "restore").write_text("criu failed: type NOTIFY errno 0")
    plan = replace(plan, assembled=None)
    (work.folder / "criu-work").mkdir()
    mark(str(work.folder), RUNS)  # CRIU was killed after it was told to go on
    if log:
        (work.folder / "criu-work" / "restore.log").write_text(log)
    with pytest.raises(RestoreFailed, match="criu failed: type NOTIFY") as caught:
        steps.run_criu(work, plan, Memory(None), Device(), Timeline())
    assert ("Error (mem.c:1): no pages" in caught.value.message) == bool(log)
    assert ("criu check" in caught.value.hint) != bool(log)
    assert (work.folder / "criu.conf").read_text() == ""
    assert not is_marked(str(work.folder), RUNS)


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
