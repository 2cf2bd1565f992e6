"""What is looked at, and set, while nobody runs: this process stands for a restored one."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.work import make_work

from shim.errors import RestoreFailed
from shim.restore import frozen
from shim.restore import plan as planning
from shim.restore.plan import Plan
from shim.snapshot.config import MountPoint
from shim.snapshot.mounts import mounts_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="limits of others need root")

SPEC: dict[str, Any] = {"linux": {"namespaces": [{"type": "pid"}]}}
HERE = os.getpid()


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The mounts are all right."""
    monkeypatch.setattr(frozen, "unexpected", lambda *_: [])
    monkeypatch.setattr(frozen, "missing", lambda *_: [])
    mounts = mounts_of(HERE)  # others may mount something meanwhile
    monkeypatch.setattr(frozen, "mounts_of", lambda _: list(mounts))
    return replace(planning.bare(make_work(tmp_path), tmp_path), mounts=tuple(mounts))


def test_mounts_as_they_must_be(plan: Plan) -> None:
    frozen.check_mounts(SPEC, plan, HERE)


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
    plan: Plan, change: Callable[[tuple[MountPoint, ...]], tuple[MountPoint, ...]], words: str
) -> None:
    with pytest.raises(RestoreFailed, match=f"mounts differ: .*{words}"):
        frozen.check_mounts(SPEC, replace(plan, mounts=change(plan.mounts)), HERE)


# In a mount namespace of its own: a folder bound twice, as CRIU leaves it.
BOUND = """\
mount --bind {0} {1} && mount -o remount,bind,nosuid,noexec {1} && mount --bind {0} {2} &&
echo ready && exec sleep 60
"""


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[tuple[int, Path, Path]]:
    """A process that sees two mounts, and where."""
    folders = [tmp_path / name for name in ("source", "with space", "other")]
    for folder in folders:
        folder.mkdir()
    script = BOUND.format(*(f"'{folder}'" for folder in folders))
    command = ["unshare", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid, folders[1], folders[2]
        process.kill()


def options(pid: int, path: Path) -> set[str]:
    [point] = [point for point in mounts_of(pid) if point.path == str(path)]
    return set(point.options)


def test_mounts_that_may_do_more_than_they_could(
    tmp_path: Path, bound: tuple[int, Path, Path]
) -> None:
    """They are forbidden what they were; what they have lost they do not get back."""
    pid, first, second = bound
    then = [
        MountPoint(str(first), "ext4", ["nodev", "noexec", "relatime", "ro"], "private"),
        MountPoint(str(second), "ext4", ["relatime", "rw"], "private"),
        MountPoint("/thaw-none", "ext4", ["ro"], "private"),
    ]
    plan = replace(planning.bare(make_work(tmp_path), tmp_path), mounts=tuple(then))
    before = options(pid, second)
    frozen.tighten(plan, pid)
    assert options(pid, first) >= {"ro", "nosuid", "nodev", "noexec", "relatime"}
    assert options(pid, second) == before
    with pytest.raises(OSError, match="Read-only"):
        Path(f"/proc/{pid}/root{first}", "file").touch()
    Path(f"/proc/{pid}/root{second}", "file").touch()


def test_a_mount_that_cannot_be_forbidden(
    tmp_path: Path, bound: tuple[int, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, first, _ = bound
    there = MountPoint(f"{first}-gone", "ext4", ["relatime", "rw"], "private")
    monkeypatch.setattr(frozen, "mounts_of", lambda _: [there])
    plan = planning.bare(make_work(tmp_path), tmp_path)
    with pytest.raises(RestoreFailed, match="-gone' to what it was: No such file"):
        frozen.tighten(replace(plan, mounts=(replace(there, options=["ro"]),)), pid)


def test_the_machine_s_own_mounts_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = MountPoint(str(tmp_path), "ext4", ["rw"], "private")
    monkeypatch.setattr(frozen, "mounts_of", lambda _: [there])
    plan = planning.bare(make_work(tmp_path), tmp_path)
    frozen.tighten(replace(plan, mounts=(replace(there, options=["ro"]),)), HERE)
    (tmp_path / "file").touch()


def test_mounts_that_the_pod_does_not_ask_for(tmp_path: Path) -> None:
    """The snapshot knows them, and they are there: that is not enough."""
    plan = planning.bare(make_work(tmp_path), tmp_path)
    with pytest.raises(RestoreFailed, match=r"mounts differ: .* is mounted too"):
        frozen.check_mounts(SPEC, replace(plan, mounts=tuple(mounts_of(HERE))), HERE)


@pytest.mark.parametrize("judge", ["unexpected", "missing"])
def test_the_live_spec_is_asked(plan: Plan, monkeypatch: pytest.MonkeyPatch, judge: str) -> None:
    asked: list[object] = []

    def complain(spec: object, points: object, _resolve: object) -> list[str]:
        asked.append((spec, points))
        return ["/x is odd"]

    monkeypatch.setattr(frozen, judge, complain)
    with pytest.raises(RestoreFailed, match="/x is odd"):
        frozen.check_mounts(SPEC, plan, HERE)
    assert asked == [(SPEC, list(plan.mounts))]


def test_masked_files() -> None:
    """Folders are masked with a tmpfs: those are mounts like others."""
    spec = {"linux": {"maskedPaths": ["/proc/kcore", "/proc/acpi", "/proc/none"]}}
    mounts = [
        MountPoint("/proc/acpi", "tmpfs", ["ro"], "private"),
        MountPoint("/proc/kcore", "tmpfs", ["nosuid", "rw"], "private"),
        MountPoint("/proc/bus", "proc", ["ro"], "private"),
    ]
    assert frozen.masked_files(spec, mounts) == ("/proc/kcore", "/proc/none")


@pytest.mark.parametrize("recorded", [True, False])
def test_masked_files_are_looked_at(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """Whatever the snapshot says of its mounts, if it says anything."""
    monkeypatch.setattr(frozen, "missing", lambda *_: [])
    asked = plan if recorded else replace(plan, mounts=())
    fine = ["/dev/null", "/proc/thaw-none"]
    masking = {**SPEC, "linux": {**(SPEC.get("linux") or {}), "maskedPaths": fine}}
    frozen.check_mounts(masking, asked, HERE)
    for path in ("/etc/passwd", "/dev/zero", "/proc"):
        spec = {**masking, "linux": {"maskedPaths": [*fine, path]}}
        with pytest.raises(RestoreFailed, match=f"{path} is not masked"):
            frozen.check_mounts(spec, asked, HERE)


def test_images_of_which_nothing_is_recorded_are_held_to_the_spec(tmp_path: Path) -> None:
    plan = planning.bare(make_work(tmp_path), tmp_path)
    with pytest.raises(RestoreFailed, match=r"mounts differ: .* is mounted too"):
        frozen.check_mounts(SPEC, plan, HERE)


# Limits


@pytest.fixture
def tree() -> Iterator[list[int]]:
    """A process with limits and a score, and a child that has lowered and raised them itself."""
    script = 'echo 500 >/proc/$$/oom_score_adj; ulimit -Sn 3000; ulimit -Hn 4000; sh -c "$0"'
    child = "ulimit -n 20; echo 600 >/proc/$$/oom_score_adj; echo; read x"
    with subprocess.Popen(
        ["sh", "-c", f"{script}; :", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdin is not None
        shell.stdout.readline()
        [below] = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
        yield [shell.pid, int(below)]
        shell.stdin.close()


def of(*limits: tuple[str, int, int], score: int | None = None, bounding: str = "") -> Any:
    entries = [
        {"type": f"RLIMIT_{kind}", "soft": soft, "hard": hard} for kind, soft, hard in limits
    ]
    process = {"rlimits": entries, "capabilities": {"bounding": bounding.split()}}
    return {"process": process | ({} if score is None else {"oomScoreAdj": score})}


def files(pids: list[int]) -> list[tuple[int, int]]:
    return [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids]


def scores(pids: list[int]) -> list[int]:
    return [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in pids]


FOREVER = (1 << 64) - 1


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (of(), [(3000, 4000), (20, 20)]),
        (of(("NOFILE", 10, 2000)), [(2000, 2000), (20, 20)]),
        (of(("NOFILE", 10, 3500)), [(3000, 3500), (20, 20)]),
        (of(("NOFILE", 5, 10)), [(10, 10), (10, 10)]),
        (of(("NOFILE", 5000, 5000), ("CORE", 0, FOREVER)), [(3000, 4000), (20, 20)]),
        (of(("NOFILE", 5, 10), bounding="CAP_SYS_RESOURCE"), [(3000, 4000), (20, 20)]),
        (of(("NONE", 5, 10)), [(3000, 4000), (20, 20)]),
        ({}, [(3000, 4000), (20, 20)]),
    ],
)
def test_limits(tree: list[int], spec: dict[str, Any], wanted: list[tuple[int, int]]) -> None:
    """Never above the spec's; what a process has given up it does not get back."""
    frozen.set_limits(spec, tree[0])
    assert files(tree) == wanted
    assert scores(tree) == [500, 600]


@pytest.mark.parametrize(
    ("score", "wanted"), [(500, [500, 600]), (400, [400, 600]), (800, [800, 800])]
)
def test_scores(tree: list[int], score: int, wanted: list[int]) -> None:
    """As of a cold boot; a process that has made itself more likely to go stays so."""
    frozen.set_limits(of(score=score), tree[0])
    assert scores(tree) == wanted
