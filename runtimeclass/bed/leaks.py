"""What a lane owns on this machine at one moment; two moments compared show what is left."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_CGROUPS = Path("/sys/fs/cgroup")
_SHIM_SOCKETS = Path("/run/containerd/s")
_FILES = (
    "state/io.containerd.runtime.v2.task/*/*",  # bundles
    "state/io.containerd.grpc.v1.cri/*/*",
    "root/io.containerd.snapshotter.v1.overlayfs/snapshots/*",
    "runc/**/state.json",
    "leases/*/[0-9]*",  # addresses of pods
    "thaw/**/*",
    "snapshots/*",
    "snapshots/.draft-*",
    "snapshots/names/*",
    "snapshots/leases/*",
    "snapshots/lost/*",
    "snapshots/snapshots/*",
)


class Holdings(NamedTuple):
    """Everything that belongs to one lane, as readable lines per kind."""

    processes: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    interfaces: frozenset[str]
    sockets: frozenset[str]
    descriptors: frozenset[str]
    files: frozenset[str]

    def since(self, earlier: Holdings) -> dict[str, list[str]]:
        """What is there now and was not then, by kind; empty kinds are left out."""
        pairs = zip(self._fields, self, earlier, strict=True)
        new = {kind: sorted(now - then) for kind, now, then in pairs if now - then}
        # What was there may have become another program since, which is no new process.
        known = [_identity(line) for line in earlier.processes]
        processes = [line for line in new.pop("processes", []) if _identity(line) not in known]
        return {"processes": processes, **new} if processes else new


def holdings(
    folder: Path, bridge: str = "", daemon: int = 0, sockets: Iterable[Path] = ()
) -> Holdings:
    """What the lane in `folder` owns.

    `daemon` is containerd's pid, which is not counted. `sockets` are those that the lane's shims
    were seen to hold: their folder is the machine's, and a socket's name does not tell its lane.
    """
    own = frozenset(_processes(folder))
    return Holdings(
        processes=frozenset(map(_process, own - {daemon})),
        mounts=frozenset(mount_points(folder)),
        cgroups=frozenset(map(str, cgroups(folder.name))),
        interfaces=frozenset(_listed(Path("/sys/class/net", bridge or "-", "brif"))),
        sockets=frozenset(_dead(sockets)),
        descriptors=frozenset(_descriptors(folder, own)),
        files=frozenset(_files(folder)),
    )


def processes(folder: Path) -> list[int]:
    """The pids that belong to a lane: by a path on the command line, working folder or cgroup."""
    return sorted(_processes(folder))


def _processes(folder: Path) -> Iterator[int]:
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid != os.getpid() and _belongs(pid, folder):
            yield pid


def _belongs(pid: int, folder: Path) -> bool:
    try:
        groups = Path("/proc", str(pid), "cgroup").read_text()
        inside = f"{folder}/"
        return (
            f"/{folder.name}/" in groups
            or f"/{folder.name}\n" in groups
            or inside in command_line(pid)
            or os.readlink(f"/proc/{pid}/cwd").startswith(inside)
        )
    except OSError:
        return False  # gone, or a kernel thread


def process_identity(pid: int) -> list[str]:
    """A pid and its start time, which together name one process; empty if there is none."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return []
    return [str(pid), stat.rpartition(")")[2].split()[19]]


def _process(pid: int) -> str:
    """Its line: what it is known by, and its arguments."""
    return " ".join([*(process_identity(pid) or [str(pid), "gone"]), command_line(pid)])


def _identity(line: str) -> list[str]:
    """The first of a process's line, which stays when it becomes another program."""
    return line.split(" ", 2)[:2]


def command_line(pid: int) -> str:
    """A process's arguments, or its name in brackets if it has none (a zombie)."""
    try:
        words = Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").strip()
        return words.decode() or f"[{Path('/proc', str(pid), 'comm').read_text().strip()}]"
    except OSError:
        return "[gone]"


def mount_points(folder: Path) -> list[str]:
    """Mount points in the lane's folder, innermost last."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for line in lines if (point := line.split()[4]).startswith(f"{folder}/")]


def cgroups(name: str) -> list[Path]:
    """The lane's cgroups below its parent in every hierarchy, innermost first."""
    hierarchies = [_CGROUPS, *(path for path in _CGROUPS.iterdir() if path.is_dir())]
    found: list[Path] = []
    for hierarchy in hierarchies:
        for top, _, _ in os.walk(hierarchy / name, topdown=False):
            found.append(Path(top))
    return [path for path in found if path.name != name]


def _dead(sockets: Iterable[Path]) -> Iterator[str]:
    listening = Path("/proc/net/unix").read_text()
    for path in sockets:
        if path.exists() and str(path) not in listening:
            yield str(path)


def _descriptors(folder: Path, pids: frozenset[int]) -> Iterator[str]:
    # Pipes and bundles that containerd and the shims hold open, not what containerd always does.
    for pid in pids:
        for target in _open_files(pid):
            if target.startswith((f"{folder}/state/", f"{folder}/thaw/")):
                yield f"{pid} {target}"


def shim_sockets(pids: Iterable[int]) -> Iterator[Path]:
    """The sockets in containerd's folder for shims that some processes hold."""
    held = {target for pid in pids for target in _open_files(pid)}
    for line in Path("/proc/net/unix").read_text().splitlines():
        words = line.split()
        if words[-1].startswith(f"{_SHIM_SOCKETS}/") and f"socket:[{words[6]}]" in held:
            yield Path(words[-1])


def _open_files(pid: int) -> Iterator[str]:
    for fd in _listed(Path("/proc", str(pid), "fd")):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue  # closed meanwhile


def _files(folder: Path) -> Iterator[str]:
    for pattern in _FILES:
        yield from (str(path) for path in folder.glob(pattern))


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
