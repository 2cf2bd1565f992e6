"""A container's control groups: where they are, who is in them, how they end.

All layouts are one class: version 2 has one folder, version 1 one per controller, and a hybrid
machine has version 1 folders and an unused unified one beside them. Mount points are taken by
convention (/sys/fs/cgroup/CONTROLLER), as reading mountinfo for each question would cost more than
the answer.

runc makes control groups and sets their limits; what they have used is read in shim.stats.
"""

from __future__ import annotations

import errno
import os
import time

from shim.errors import InvalidArgument, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.proto import cgroups_v1_pb, cgroups_v2_pb

ROOT = "/sys/fs/cgroup"
UNIFIED = ""  # the name of the unified hierarchy among the controllers
_HYBRID = "unified"  # its folder, where version 1 is used
_LISTING = ("pids", "freezer", "devices", "memory", "cpu", "systemd")  # any knows all processes
_RMDIR_TRIES = 6
_SIGKILL = 9  # the module signal would bring enum along


class Cgroup:
    """The folders of one container's control groups, by controller."""

    __slots__ = ("paths", "version")

    def __init__(self, version: int, paths: dict[str, str]) -> None:
        self.version = version
        self.paths = paths

    def __repr__(self) -> str:
        return f"Cgroup(v{self.version}, {self.main})"

    @property
    def main(self) -> str:
        """The folder that lists the processes."""
        if self.version == 1:
            for controller in _LISTING:
                if controller in self.paths:
                    return self.paths[controller]
        return self.paths.get(UNIFIED) or next(iter(self.paths.values()))

    def exists(self) -> bool:
        """Whether the group is still there."""
        return os.path.isdir(self.main)

    def pids(self) -> list[int]:
        """All processes in it and in the groups below it; none if it is gone."""
        found: set[int] = set()
        for folder in below(self.main):
            found.update(_procs(folder))
        return sorted(found)

    def empty(self) -> bool:
        """Whether no process is in it; true if it is gone."""
        return not self.pids()

    @property
    def frozen(self) -> bool:
        """Whether its processes stand still; not so while they are only being stopped."""
        if self.version == 2:
            return "frozen 1" in _read_if_there(f"{self.main}/cgroup.events").splitlines()
        freezer = self.paths.get("freezer", self.main)
        return _read_if_there(f"{freezer}/freezer.state").strip() == "FROZEN"

    def add(self, pid: int) -> None:
        """Move a process in, under every controller. Raises OSError."""
        for folder in self._folders():
            _write(f"{folder}/cgroup.procs", str(pid))

    def kill(self, seconds: float = 5.0) -> bool:
        """Kill every process, also a frozen one, and wait until they are gone.

        Returns whether they all were within `seconds`; one in an uninterruptible call may not be.
        """
        deadline, pause = time.monotonic() + seconds, 0.001
        while not self.empty():
            self._kill_once()
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return True

    def remove(self) -> None:
        """Remove the group and those below it. Raises OSError if one is still in use."""
        for folder in self._folders():
            for group in reversed(list(below(folder))):
                _rmdir(group)

    def stats(self) -> cgroups_v1_pb.Metrics | cgroups_v2_pb.Metrics:
        """What it uses, as containerd's Metrics. Raises NotFound if it is gone."""
        from shim import stats  # imported with the first question: not every pod is ever asked

        return stats.read(self)

    def _folders(self) -> list[str]:
        return list(dict.fromkeys(self.paths.values()))  # cpu and cpuacct may share one

    def _kill_once(self) -> None:
        if self.version == 2 and _write_if_there(f"{self.main}/cgroup.kill", "1"):
            return
        # Frozen while the list is worked off, or a forking process would outrun it; thawed, because
        # version 1 delivers no signal, not even this one, to a frozen process.
        freezer = self.paths.get("freezer", self.main)
        _write_if_there(f"{freezer}/freezer.state", "FROZEN")
        for pid in self.pids():
            _kill(pid)
        for folder in below(freezer):
            _write_if_there(f"{folder}/freezer.state", "THAWED")


def of_pid(pid: int, root: str = ROOT, proc: str = "/proc") -> Cgroup:
    """The control groups that a container's init is in.

    A group that is the root or our own is nobody's: without limits runc may leave a container where
    it was started, and what is in there must not be counted, let alone killed. NotFound if nothing
    is left, or the process is gone.
    """
    try:
        memberships = _memberships(f"{proc}/{pid}/cgroup")
        ours = _memberships(f"{proc}/self/cgroup")
    except (FileNotFoundError, ProcessLookupError):
        raise NotFound(f"process {pid} is gone") from None
    own = {
        controller: path
        for controller, path in memberships.items()
        if path.strip("/") and not path.startswith("/..") and path != ours.get(controller)
    }
    return _existing(own, root, f"process {pid} is in no control group of its own")


def of_spec(
    path: str,
    container_id: str,
    systemd: bool = False,
    root: str = ROOT,
    proc: str = "/proc",
) -> Cgroup:
    """The control groups of a spec's `linux.cgroupsPath`, as runc's driver understands it.

    Raises NotFound if there are none (any more), InvalidArgument for a path that cannot be.
    """
    relative = _relative(path, container_id, systemd, root, proc)
    if any(not group.strip("/") for group in relative.values()):
        raise InvalidArgument(f"control group path {path!r} is the root")
    return _existing(relative, root, f"no control group {path or container_id}")


def unified_path(
    path: str,
    container_id: str,
    systemd: bool = False,
    root: str = ROOT,
    proc: str = "/proc",
) -> str:
    """Where runc will put the container, as CRIU wants it; empty if version 1 is used."""
    if not is_unified(root):
        return ""
    return _relative(path, container_id, systemd, root, proc).get(UNIFIED, "")


def systemd_path(path: str, container_id: str) -> str:
    """The folder of `slice:prefix:name`, for example /a.slice/a-b.slice/prefix-name.scope."""
    parts = path.split(":") if path else ["system.slice", "runc", container_id]
    if len(parts) != 3:
        raise InvalidArgument(
            f"control group path {path!r}", hint="the systemd driver wants slice:prefix:name"
        )
    parent, prefix, name = parts
    unit = f"{prefix}-{name}" if prefix else name
    return _join(
        expand_slice(parent or "system.slice"), name if _is_slice(name) else unit + ".scope"
    )


def expand_slice(name: str) -> str:
    """A slice's folder: each dash is a level, so a-b.slice lies in a.slice."""
    if name == "-.slice":
        return "/"
    stem = name.removesuffix(".slice")
    if not _is_slice(name) or "/" in name or not all(stem.split("-")):
        raise InvalidArgument(f"{name!r} is not the name of a slice")
    words = stem.split("-")
    return "/" + "/".join("-".join(words[: n + 1]) + ".slice" for n in range(len(words)))


def is_unified(root: str = ROOT) -> bool:
    """Whether this machine uses version 2 and nothing else."""
    return os.path.exists(f"{root}/cgroup.controllers")


def below(folder: str) -> Iterator[str]:
    """A control group and all those in it, parents first; nothing if it is gone."""
    try:
        with os.scandir(folder) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return
    yield folder
    for child in sorted(children):
        yield from below(child)


def _is_slice(name: str) -> bool:
    return name.endswith(".slice")


def _join(parent: str, path: str) -> str:
    return os.path.normpath(f"/{parent}/{path}").replace("//", "/", 1)


def _relative(path: str, container_id: str, systemd: bool, root: str, proc: str) -> dict[str, str]:
    """The paths of `of_spec` below each hierarchy, whether they are there or not."""
    controllers = _memberships(f"{proc}/self/cgroup")
    if systemd:
        unit = systemd_path(path, container_id)
        # systemd's version 1 groups lie below those of pid 1 (in a container, not the root).
        parents = _memberships(f"{proc}/1/cgroup") if not is_unified(root) else {}
        return {
            name: _join(parents.get(name, "/").removesuffix("init.scope"), unit)
            for name in controllers
        }
    return {
        name: _under(own, path or container_id, is_unified(root))
        for name, own in controllers.items()
    }


def _under(own: str, path: str, unified: bool) -> str:
    """Where runc puts a relative path: below its own group, in version 2 beside it.

    Version 2 allows no processes in a group that hands on controllers, so runc leaves its own.
    """
    if path.startswith("/"):
        return _join("", path)
    return _join(os.path.dirname(own) if unified else own, os.path.normpath(path))


def _memberships(file: str) -> dict[str, str]:
    """Controller to path, from a /proc/PID/cgroup; `name=systemd` is called systemd."""
    groups: dict[str, str] = {}
    with open(file, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for controller in controllers.split(","):
                groups[controller.removeprefix("name=")] = path
    return groups


def _existing(relative: dict[str, str], root: str, otherwise: str) -> Cgroup:
    """The groups that are there, by controller; NotFound, saying `otherwise`, if none is."""
    unified = is_unified(root)
    paths = {}
    for controller, path in relative.items():
        if unified and controller != UNIFIED:
            continue
        hierarchy = root if unified else f"{root}/{controller or _HYBRID}"
        folder = os.path.normpath(hierarchy + "/" + path)
        if os.path.isdir(folder):
            paths[controller] = folder
    if not paths or (not unified and set(paths) == {UNIFIED}):
        raise NotFound(otherwise)
    return Cgroup(2 if unified else 1, paths)


def _procs(folder: str) -> list[int]:
    try:
        with open(f"{folder}/cgroup.procs", "rb") as file:
            return [int(line) for line in file if line != b"0\n"]  # 0: outside our pid namespace
    except OSError as error:
        # Removed meanwhile, or a threaded group, whose processes its parent lists.
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return []
        raise


def _kill(pid: int) -> None:
    try:
        os.kill(pid, _SIGKILL)
    except ProcessLookupError:
        pass


def _write(path: str, value: str) -> None:
    # Without O_CREAT: a control file is there or is not, and in a test's folder it must not appear.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _read_if_there(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return ""
        raise


def _write_if_there(path: str, value: str) -> bool:
    try:
        _write(path, value)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _rmdir(folder: str) -> None:
    """Remove one group. It stays busy for a moment after its last process was reaped."""
    pause = 0.005
    for attempt in range(_RMDIR_TRIES):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or attempt == _RMDIR_TRIES - 1:
                raise
            time.sleep(pause)
            pause *= 2
        else:
            return
