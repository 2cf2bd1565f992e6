"""A private containerd for workers on a GPU, and pods with them."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bed.images import HOST_IMAGE
from bed.lane import Installation, Lane
from bed.leaks import mount_points
from bed.pod import Container, Mount, Pod
from gpu.machine import Machine, annotations_of
from gpu.subject import TESTS, Subject

STARTING = 300.0  # seconds; nobody waits as briefly as the kubelet for what is measured
_FIELDS = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)')
_SPANS = ("timeline", "cuda", "gpu")


class Boot(NamedTuple):
    """One start of a worker: seconds since its pod was asked for, and what it said."""

    pod: float  # RunPodSandbox has returned
    created: float  # CreateContainer has
    started: float  # StartContainer has
    answered: float  # the first token, or the first checksums, are there
    answer: dict[str, Any]
    restored: dict[str, Any]  # what the shim's log says of the restore; {} if there was none

    def times(self) -> dict[str, Any]:
        """All but the answer, for the record."""
        return {name: value for name, value in self._asdict().items() if name != "answer"}


class GpuLane(Lane):
    """A lane whose engine finds the driver's libraries, wherever they are."""

    def __init__(self, installation: Installation, machine: Machine) -> None:
        self.machine = machine
        super().__init__("2.x", installation)
        if machine.library is not None:
            self.configure("gpu.library", f'"{machine.library}"')

    def configure(self, key: str, value: str) -> None:
        """Set a key of Thaw's configuration for the pods to come."""
        lines = self.places.thaw_config.read_text().splitlines()
        kept = [line for line in lines if not line.startswith(f"{key} =")]
        self.places.thaw_config.write_text("\n".join([*kept, f"{key} = {value}", ""]))

    def environment(self) -> dict[str, str]:
        """The environment of containerd, and so of all shims."""
        return {**super().environment(), **self.machine.libraries}

    def run_pod_for(self, subject: Subject, name: str, annotations: Mapping[str, str]) -> Pod:
        """A pod for a worker, with what is said of it and of this start."""
        return self.run_pod(name, annotations={**subject.annotations, **annotations})

    def container_in(self, pod: Pod, subject: Subject, device: str = "all") -> Container:
        """The worker's container, created and not started; `device`: see machine.described."""
        machine, mounts = self.machine, mounts_for(self.machine, subject)
        if subject.shared_memory:
            volume = memory_volume(pod.folder / "shm", subject.shared_memory)
            mounts.append(Mount(volume, "/dev/shm", readonly=False))
        return pod.container(
            "worker",
            HOST_IMAGE,
            [machine.python, *subject.words],
            env={**machine.environment, "PYTHONPATH": str(TESTS), **subject.environment},
            mounts=mounts,
            annotations=annotations_of(device) if machine.library is not None else {},
        )

    def boot(
        self,
        subject: Subject,
        pod_name: str,
        annotations: Mapping[str, str],
        device: str = "all",
        pause: float = 0.0,
    ) -> tuple[Boot, Pod, Container]:
        """Run a pod with the worker and ask it; cold and restored go exactly the same way.

        `pause`: seconds between the pod's sandbox and its container, which count for nothing.
        """
        began = time.monotonic()
        pod = self.run_pod_for(subject, pod_name, annotations)
        there = time.monotonic() - began
        time.sleep(pause)
        began += pause
        container = self.container_in(pod, subject, device)
        created = time.monotonic() - began
        container.start(STARTING)
        started = time.monotonic() - began
        subject.wait(pod.ip, lambda: container.running)
        subject.begin(pod.ip)
        answered = time.monotonic() - began
        answer = subject.answer(pod.ip)
        told = self.restored(container)
        return Boot(there, created, started, answered, answer, told), pod, container

    def clear(self) -> None:
        """Remove all pods, with their volumes, and all that `ctr` made."""
        try:
            super().clear()
        finally:
            for point in reversed(mount_points(self.places.pods)):
                subprocess.run(["umount", point], check=True)

    def told(self, container: Container, message: str, seconds: float = 2.0) -> dict[str, Any]:
        """The last line of the shim's log with a message about a container, in parts.

        {}: there is none, and none has come within that time; containerd is in between.
        """
        ends = time.monotonic() + seconds
        while not (there := [o for o in self.lines(container) if f'msg="{message}"' in o]):
            if time.monotonic() > ends:
                return {}
            time.sleep(0.05)
        return fields(there[-1])

    def restored(self, container: Container) -> dict[str, Any]:
        """What the shim's log says of a container's restore; {} if there was none."""
        for line in self.lines(container):
            if "msg=restored " in line:
                return fields(line)
        return {}

    def reasons(self, container: Container) -> str:
        """Why it was not restored, as the shim's log has it; "" if it says nothing of that."""
        for line in self.lines(container):
            if 'msg="booting cold"' in line or 'msg="not restored"' in line:
                return str(fields(line).get("error", ""))
        return ""

    def lines(self, container: Container) -> list[str]:
        """The lines of the log that are about a container."""
        text = self.places.log.read_text(errors="replace")
        return [line for line in text.splitlines() if f"container={container.id}" in line]

    def newest(self) -> Path:
        """The folder of the snapshot that was made last."""
        return max(self.places.snapshots.glob("snapshots/*"), key=lambda path: path.stat().st_ctime)

    def forget(self) -> None:
        """Remove all snapshots, for the room on the disk."""
        for path in self.places.snapshots.glob("snapshots/*"):
            self.thaw("rm", path.name, check=False)


@contextmanager
def opened(installation: Installation, machine: Machine) -> Iterator[GpuLane]:
    """A lane that runs, and is taken down at the end of the block."""
    lane = GpuLane(installation, machine)
    try:
        lane.start()
        lane.import_images()
        yield lane
    finally:
        lane.take_down()


def mounts_for(machine: Machine, subject: Subject) -> list[Mount]:
    """What of this machine a worker sees: what it has elsewhere it has there alone."""
    elsewhere = subject.elsewhere.values()
    return [
        *(mount for mount in machine.mounts if mount.host not in elsewhere),
        *(Mount(path, str(path)) for path in (TESTS / "gpu", *subject.folders)),
        *(Mount(path, at) for at, path in subject.elsewhere.items()),
        *(Mount(path, str(path), readonly=False) for path in subject.writable),
    ]


def memory_volume(folder: Path, size: str) -> Path:
    """A tmpfs of that size, as kubelet makes an emptyDir of medium Memory; clear() unmounts it."""
    folder.mkdir(mode=0o777)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    return folder


def fields(line: str) -> dict[str, Any]:
    """A line of the shim's log: texts, numbers where they are, and spans by their names."""
    found: dict[str, Any] = {}
    for name, text in _FIELDS.findall(line):
        said = text[1:-1].replace('\\"', '"').replace("\\n", "\n") if text[0] == '"' else text
        found[name] = _spans(said) if name in _SPANS else _number(said)
    return found


def _spans(text: str) -> dict[str, float | str]:
    pairs = (word.partition("=") for word in text.split())
    return {name: _number(seconds) for name, _, seconds in pairs}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
