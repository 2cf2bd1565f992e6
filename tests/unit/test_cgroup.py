"""Control groups under a private name, made here and removed; other layouts as plain folders."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes.settled import PATIENCE

from shim import cgroup
from shim.cgroup import Cgroup, expand_slice, of_pid, of_spec, systemd_path, unified_path
from shim.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[..., int]

ROOT = Path(cgroup.ROOT)
UNIFIED = ROOT if cgroup.is_unified() else ROOT / "unified"
V1 = not cgroup.is_unified() and (ROOT / "memory").is_dir()
writable = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access(ROOT / ("memory" if V1 else "."), os.W_OK),
    reason="needs root and control groups",
)
only_v1 = pytest.mark.skipif(not V1, reason="needs version 1")
only_v2 = pytest.mark.skipif(not (UNIFIED / "cgroup.procs").exists(), reason="needs version 2")


@pytest.fixture
def name() -> Iterator[str]:
    path = f"thaw-test-{os.getpid()}/box"
    yield path
    top = path.partition("/")[0]
    left = [*ROOT.glob(f"*/{top}"), *ROOT.glob(top)]
    assert [folder for folder in left if (folder / "box").exists()] == []
    for folder in left:
        folder.rmdir()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process, puts it into groups, and only then lets it run `code` and sleep."""
    running: list[subprocess.Popen[bytes]] = []

    def starter(*folders: str | Path, code: str = "") -> int:
        script = f"import os, signal\nos.read(0, 1)\n{code}\nsignal.pause()"
        child = subprocess.Popen([sys.executable, "-IS", "-c", script], stdin=subprocess.PIPE)
        running.append(child)
        for folder in folders:
            Path(folder, "cgroup.procs").write_text(str(child.pid))
        assert child.stdin is not None
        child.stdin.write(b"x")
        child.stdin.flush()
        return child.pid

    yield starter
    for child in running:
        with child:
            child.kill()


def make_v1(name: str, *controllers: str) -> Cgroup:
    paths = {controller: str(ROOT / controller / name) for controller in controllers}
    for path in paths.values():
        os.makedirs(path)
    return Cgroup(1, paths)


@writable
@only_v1
def test_v1_end_to_end(name: str, start: Start) -> None:
    group = make_v1(name, "memory", "pids", "freezer", "cpu", "cpuacct")
    nested = Path(group.paths["pids"]) / "inner"
    nested.mkdir()
    outer, inner = start(), start()
    group.add(outer)
    group.add(inner)
    (nested / "cgroup.procs").write_text(str(inner))
    found = of_pid(outer)
    assert found.version == 1
    assert found.paths == group.paths
    assert of_spec("/" + name, "ignored").paths == group.paths
    assert group.pids() == sorted([outer, inner])
    assert not group.empty()
    assert group.kill(PATIENCE)
    assert group.empty()
    os.waitpid(outer, 0)
    group.remove()
    assert not group.exists()
    assert group.empty()
    assert group.kill(PATIENCE)
    group.remove()
    with pytest.raises(NotFound, match=name):
        of_spec("/" + name, "ignored")


@writable
@only_v1
def test_v1_kills_the_frozen_and_leaves_the_group_thawed(name: str, start: Start) -> None:
    group = make_v1(name, "freezer")
    group.add(start())
    freezer = Path(group.paths["freezer"], "freezer.state")
    seen = [group.frozen]
    freezer.write_text("FROZEN")
    while freezer.read_text() != "FROZEN\n":  # the kernel takes its time
        pass
    seen.append(group.frozen)
    assert group.kill(PATIENCE)
    assert [*seen, group.frozen] == [False, True, False]
    assert freezer.read_text() == "THAWED\n"
    group.remove()


@writable
@only_v1
def test_v1_kills_a_process_that_runs_away(name: str, start: Start) -> None:
    group = make_v1(name, "pids", "freezer")
    # Each process lives just long enough to start the next; after a while they end by themselves.
    start(*group.paths.values(), code="for _ in range(100_000):\n    if os.fork(): os._exit(0)")
    assert group.kill(PATIENCE)
    group.remove()


@writable
@only_v2
def test_v2_end_to_end(name: str, start: Start) -> None:
    folder = UNIFIED / name
    (folder / "inner").mkdir(parents=True)
    group = Cgroup(2, {"": str(folder)})
    outer, inner = start(folder), start(folder / "inner")
    assert group.pids() == sorted([outer, inner])
    assert group.kill(PATIENCE)
    assert group.empty()
    group.remove()
    assert not group.exists()


@writable
@only_v2
def test_v2_kills_without_cgroup_kill(
    name: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = UNIFIED / name
    folder.mkdir(parents=True)
    (folder / "cgroup.freeze").write_text("0")
    group = Cgroup(2, {"": str(folder)})
    start(folder)
    monkeypatch.setattr(cgroup, "_write_if_there", lambda path, value: False)
    assert group.kill(PATIENCE)
    group.remove()


@writable
def test_what_cannot_be_killed_is_told(
    name: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = make_v1(name, "pids") if V1 else Cgroup(2, {"": str(ROOT / name)})
    os.makedirs(group.main, exist_ok=True)
    group.add(start())
    monkeypatch.setattr(Cgroup, "_kill_once", lambda self: None)
    assert not group.kill(seconds=0)
    with pytest.raises(OSError, match="busy"):
        group.remove()
    monkeypatch.undo()
    assert group.kill(PATIENCE)
    group.remove()


def test_our_own_group_is_not_a_containers(start: Start) -> None:
    with pytest.raises(NotFound, match="no control group of its own"):
        of_pid(start())
    with pytest.raises(NotFound, match="no control group of its own"):
        of_pid(os.getpid())


def test_a_process_that_is_gone() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    with pytest.raises(NotFound, match=f"process {child} is gone"):
        of_pid(child)


class Machine:
    """/proc and /sys/fs/cgroup as plain files."""

    def __init__(self, top: Path, memberships: str, init: str = "") -> None:
        self.root, self.proc = top / "cgroup", top / "proc"
        self.root.mkdir()
        for pid, text in (("self", memberships), ("1", init or memberships)):
            self.process(pid, text)

    def process(self, pid: str, memberships: str) -> None:
        (self.proc / pid).mkdir(parents=True)
        (self.proc / pid / "cgroup").write_text(memberships)

    def folder(self, path: str) -> str:
        (self.root / path).mkdir(parents=True)
        return str(self.root / path)

    def of_pid(self, pid: int) -> Cgroup:
        return of_pid(pid, root=str(self.root), proc=str(self.proc))

    def of_spec(self, path: str, container_id: str, systemd: bool = False) -> Cgroup:
        return of_spec(path, container_id, systemd, root=str(self.root), proc=str(self.proc))

    def unified_path(self, path: str, systemd: bool = False) -> str:
        return unified_path(path, "c", systemd, root=str(self.root), proc=str(self.proc))


@pytest.fixture
def v1(tmp_path: Path) -> Machine:
    text = "9:name=systemd:/shim\n4:cpu,cpuacct:/shim\n2:memory:/shim\n0::/\n"
    return Machine(tmp_path, text, init="9:name=systemd:/init.scope\n2:memory:/\n0::/init.scope\n")


@pytest.fixture
def v2(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path, "0::/system.slice/containerd.service\n")
    (machine.root / "cgroup.controllers").touch()
    return machine


def test_v1_of_pid(v1: Machine) -> None:
    v1.process("7", "9:name=systemd:/c\n4:cpu,cpuacct:/c\n2:memory:/c\n1:pids:/../x\n0::/\n")
    paths = {name: v1.folder(f"{name}/c") for name in ("systemd", "cpu", "memory")}
    group = v1.of_pid(7)
    assert (group.version, group.paths) == (1, paths)
    assert group.main == paths["memory"]


def test_hybrid_has_version_1_and_a_unified_folder(v1: Machine) -> None:
    v1.process("7", "2:memory:/c\n0::/c\n")
    paths = {"memory": v1.folder("memory/c"), "": v1.folder("unified/c")}
    group = v1.of_pid(7)
    assert (group.version, group.paths, group.main) == (1, paths, paths["memory"])


def test_a_hybrids_unified_folder_alone_is_not_enough(v1: Machine) -> None:
    v1.process("7", "2:memory:/shim\n0::/c\n")
    v1.folder("unified/c")
    with pytest.raises(NotFound):
        v1.of_pid(7)


def test_v2_of_pid(v2: Machine) -> None:
    v2.process("7", "0::/kubepods.slice/pod.slice/c.scope\n")
    folder = v2.folder("kubepods.slice/pod.slice/c.scope")
    group = v2.of_pid(7)
    assert (group.version, group.paths) == (2, {"": folder})
    assert not group.frozen
    for said, frozen in (("populated 1\nfrozen 0\n", False), ("populated 1\nfrozen 1\n", True)):
        Path(folder, "cgroup.events").write_text(said)
        assert group.frozen is frozen


def test_v1_of_spec(v1: Machine) -> None:
    absolute, relative = v1.folder("memory/kubepods/pod/c"), v1.folder("memory/shim/c")
    assert v1.of_spec("/kubepods/pod/c", "c").paths == {"memory": absolute}
    assert v1.of_spec("c", "id").paths == {"memory": relative}
    assert v1.of_spec("", "c").paths == {"memory": relative}


def test_v2_of_spec(v2: Machine) -> None:
    absolute, relative = v2.folder("kubepods/pod/c"), v2.folder("system.slice/c")
    assert v2.of_spec("/kubepods//pod/c/", "c").paths == {"": absolute}
    assert v2.of_spec("", "c").paths == {"": relative}


def test_systemd_of_spec(v1: Machine) -> None:
    folder = v1.folder("memory/kubepods.slice/kubepods-pod1.slice/cri-containerd-c.scope")
    found = v1.of_spec("kubepods-pod1.slice:cri-containerd:c", "c", systemd=True)
    assert found.paths == {"memory": folder}


def test_systemd_of_spec_v2(v2: Machine) -> None:
    folder = v2.folder("system.slice/runc-c.scope")
    assert v2.of_spec("", "c", systemd=True).paths == {"": folder}


def test_where_v2_will_put_it(v2: Machine) -> None:
    assert v2.unified_path("/kubepods//pod/c/") == "/kubepods/pod/c"
    assert v2.unified_path("") == "/system.slice/c"
    assert v2.unified_path("a.slice:cri:c", systemd=True) == "/a.slice/cri-c.scope"


def test_v1_has_no_unified_path(v1: Machine) -> None:
    assert v1.unified_path("/kubepods/pod/c") == ""


@pytest.mark.parametrize("path", ["/", "/..", "/../../", "/a/.."])
def test_the_root_is_nobodys(v2: Machine, path: str) -> None:
    with pytest.raises(InvalidArgument, match="is the root"):
        v2.of_spec(path, "c")


def test_a_spec_cannot_leave_the_hierarchy(v2: Machine) -> None:
    v2.folder("../outside")
    with pytest.raises(NotFound):
        v2.of_spec("/../outside", "c")


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("a.slice:cri:c", "/a.slice/cri-c.scope"),
        ("a.slice::c", "/a.slice/c.scope"),
        (":cri:c", "/system.slice/cri-c.scope"),
        ("-.slice:cri:c", "/cri-c.scope"),
        ("a-b.slice::c.slice", "/a.slice/a-b.slice/c.slice"),
        ("", "/system.slice/runc-id.scope"),
    ],
)
def test_systemd_path(path: str, folder: str) -> None:
    assert systemd_path(path, "id") == folder


@pytest.mark.parametrize("path", ["/kubepods/c", "a:b", "a:b:c:d", "a:b:c", "a--b.slice:x:y"])
def test_systemd_path_refuses(path: str) -> None:
    with pytest.raises(InvalidArgument):
        systemd_path(path, "id")


@pytest.mark.parametrize("name", ["a/b.slice", ".slice", "-a.slice", "a-.slice", "a"])
def test_expand_slice_refuses(name: str) -> None:
    with pytest.raises(InvalidArgument, match="slice"):
        expand_slice(name)


def exiting(pid: int) -> bool:
    flags = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6]
    return bool(int(flags) & 0x4)  # PF_EXITING


def test_kill_waits_for_the_process_to_be_gone(name: str, start: Start) -> None:
    if not V1 or os.geteuid() != 0:
        pytest.skip("needs version 1")
    group = make_v1(name, "pids")
    pid = start()
    group.add(pid)
    handle = os.pidfd_open(pid)
    assert group.kill(PATIENCE)
    # It leaves the group at its very end (see the kernel's do_exit), and is told of a moment later.
    assert exiting(pid)
    assert select.select([handle], [], [], PATIENCE)[0] == [handle]
    os.close(handle)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    group.remove()
