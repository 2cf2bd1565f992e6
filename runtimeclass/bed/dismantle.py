"""Removes a lane by force: whatever is left of it, also when the program that owned it was killed.

A lane is one folder, a cgroup of the folder's name, and a bridge named in the folder, so that this
needs nothing but the folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bed.leaks import cgroups, mount_points, process_identity, processes, shim_sockets
from bed.network import remove_bridges

PREFIX = "thaw-bed-"
OWNER = "owner"
BRIDGE = "bridge"
_SECONDS = 60.0
_CGROUPS = Path("/sys/fs/cgroup")
_CNI_RESULTS = Path("/var/lib/cni/results")


def dismantle(folder: Path) -> None:
    """Kill, unmount and delete everything that belongs to the lane in `folder`."""
    sockets = list(_shim_sockets(folder))
    _kill(folder)
    for point in reversed(mount_points(folder)):
        subprocess.run(["umount", "--lazy", point], check=False)
    remove_bridges(_read_words(folder / BRIDGE))
    for group in [*cgroups(folder.name), *_parents(folder.name)]:
        _remove(group)
    for path in [*sockets, *_CNI_RESULTS.glob(f"{folder.name}-*")]:
        path.unlink(missing_ok=True)
    if left := mount_points(folder):
        raise RuntimeError(f"still mounted, so not deleted: {' '.join(left)}")
    shutil.rmtree(folder)


def sweep(parent: Path) -> None:
    """Dismantle the lanes in `parent` whose owner no longer runs."""
    with open(parent / f".{PREFIX}sweep", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two runs that begin together, one sweeps
        for folder in parent.glob(f"{PREFIX}*"):
            owner = _read_words(folder / OWNER)
            if owner and owner != process_identity(int(owner[0])):
                dismantle(folder)


def _kill(folder: Path) -> None:
    ends = time.monotonic() + _SECONDS
    while pids := processes(folder):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if time.monotonic() > ends:
            raise TimeoutError(f"processes of {folder} do not end: {pids}")
        time.sleep(0.05)


def _remove(group: Path) -> None:
    """Remove a cgroup, once its processes have left it: in version 1 they tell of none before."""
    ends = time.monotonic() + _SECONDS
    while True:
        try:
            return group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > ends:
                raise
        time.sleep(0.05)


def _parents(name: str) -> list[Path]:
    return [path for path in [_CGROUPS / name, *_CGROUPS.glob(f"*/{name}")] if path.is_dir()]


def _shim_sockets(folder: Path) -> Iterator[Path]:
    """The lane's sockets outside its folder: dead shims' by their bundles, the others as held.

    A shim that debugs has one more than its bundle names.
    """
    bundles = folder / "state/io.containerd.runtime.v2.task"
    for path in bundles.glob("*/*/address"):
        yield Path(path.read_text().strip().removeprefix("unix://"))
    for path in bundles.glob("*/*/bootstrap.json"):
        yield Path(str(json.loads(path.read_text())["address"]).removeprefix("unix://"))
    yield from shim_sockets(processes(folder))


def _read_words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
