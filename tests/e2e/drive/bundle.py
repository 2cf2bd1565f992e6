"""A container on disk, as containerd lays it out: bundle, OCI spec, root file system, FIFOs."""

from __future__ import annotations

import copy
import json
import os
import select
import shutil
import threading
from pathlib import Path
from typing import Any

from bed import fetch

from shim.proto.task_pb import Mount

APPLETS = (
    *("cat", "dd", "echo", "env", "false", "head", "id", "kill", "mount", "ps", "sh", "sleep"),
    *("stty", "touch", "tr", "true", "tty", "wc", "yes"),
)
FOLDERS = ("bin", "dev", "etc", "proc", "sys", "tmp")
CAPABILITIES = ["CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_ADMIN"]


def make_root(folder: Path) -> Path:
    """A root file system with busybox in `folder`."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    shutil.copy(fetch.busybox(), folder / "bin/busybox")
    for name in APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    return folder


def overlay(lower: Path, folder: Path) -> Mount:
    """A writable overlay over `lower`, as the overlayfs snapshotter describes one."""
    for name in ("upper", "work"):
        (folder / name).mkdir(parents=True)
    options = [f"lowerdir={lower}", f"upperdir={folder}/upper", f"workdir={folder}/work"]
    return Mount(type="overlay", source="overlay", options=options)


class Bundle:
    """The bundle of one container and its spec, which may be changed until `write`."""

    def __init__(self, path: Path, cgroup: str) -> None:
        self.path = path
        (path / "rootfs").mkdir(parents=True)
        os.mkfifo(path / "log", 0o600)
        # containerd reads the shim's log from here; who opens it for writing only waits for that.
        self._log = os.open(path / "log", os.O_RDWR | os.O_NONBLOCK)
        self.spec = copy.deepcopy(_SPEC)
        self.spec["linux"]["cgroupsPath"] = cgroup

    def write(self) -> None:
        """Write config.json."""
        (self.path / "config.json").write_text(json.dumps(self.spec))

    def log(self) -> str:
        """What the shim has logged since the last call."""
        try:
            return os.read(self._log, 1 << 16).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        """Let go of the log."""
        os.close(self._log)


class Output:
    """A FIFO that is read to its end by a thread, as containerd's logger does."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path, 0o600)
        self.path = path
        self._data = bytearray()
        self._changed = threading.Condition()
        self._ended = False
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._stop, self._stopper = os.pipe()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def wait_for(self, text: bytes, seconds: float = 60) -> bytes:
        """Wait until `text` has come; everything so far."""
        with self._changed:
            if not self._changed.wait_for(lambda: text in self._data, seconds):
                raise TimeoutError(f"{text!r} not in {bytes(self._data[-500:])!r}")
            return bytes(self._data)

    def to_the_end(self, seconds: float = 60) -> bytes:
        """Wait until the last writer is gone; everything."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, seconds):
                raise TimeoutError(f"no end after {len(self._data)} bytes")
            return bytes(self._data)

    def close(self) -> None:
        """Stop reading."""
        os.close(self._stopper)
        self._thread.join()
        os.close(self._stop)
        os.close(self._fd)

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._stop, select.POLLHUP)
        while not self._ended:
            ready = dict(poll.poll())
            if self._stop in ready:
                return
            data = os.read(self._fd, 1 << 16) if ready[self._fd] & select.POLLIN else b""
            with self._changed:
                self._data += data
                self._ended = not data
                self._changed.notify_all()


def process(*args: str, **more: Any) -> dict[str, Any]:
    """An OCI process."""
    path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
    capabilities = dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES)
    return {
        "args": list(args),
        "cwd": "/",
        "env": [path],
        "user": {"uid": 0, "gid": 0},
        "capabilities": capabilities,
        **more,
    }


_SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": process("sleep", "1000"),
    "root": {"path": "rootfs"},
    "hostname": "driven",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        },
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
    ],
    "linux": {
        "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
        "resources": {"memory": {"limit": 256 << 20}},
    },
}
