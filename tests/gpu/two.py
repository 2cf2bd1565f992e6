"""What needs two GPUs: a worker that comes back on another one, and processes that share them."""

from __future__ import annotations

import time
from pathlib import Path

from bed.lane import CRI_NAMESPACE
from gpu.flow import Restores, through_containerd
from gpu.lane import GpuLane
from gpu.record import Record, say
from gpu.subject import PORT, Subject, by_driver, compare, pytorch

_ACTIONS = {
    "thaw.dev/quiesce": f"http:{PORT}/quiesce",
    "thaw.dev/resume": f"http:{PORT}/resume",
    "thaw.dev/quiesce-timeout": "60",
    "thaw.dev/resume-timeout": "60",
}
_NCCL = {
    # It looks for an interface once in a process's life, and keeps the address; a restored pod has
    # another. That of the loopback stays.
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_DEBUG": "WARN",
    # No multicast over NVLink: what fails in it can stop a host's GPUs for everybody.
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}
# NCCL 2.28 takes 34 MiB of /dev/shm for each process, whatever its NCCL_SHM_DISABLE says, and a pod
# has 64 unless it is given a volume for that.
_SHARED_MEMORY = "1g"


def minors(folder: Path = Path("/dev")) -> list[str]:
    """The GPUs' minor numbers."""
    found = (path.name.removeprefix("nvidia") for path in folder.glob("nvidia*"))
    return sorted((name for name in found if name.isdigit()), key=int)


def moved(lane: GpuLane, gib: float, record: Record) -> None:
    """A worker saved on the last GPU, restored on the first one, and on its own again."""
    first, *_, last = minors()
    subject = pytorch(gib, name="moved")
    cold, pod, container = lane.boot(subject, "moved-cold", {}, last)
    lane.thaw("checkpoint", container.id, subject.name, "--namespace", CRI_NAMESPACE)
    compare("the worker after its snapshot", subject, cold.answer, subject.answer(pod.ip))
    lane.clear()
    notes = {"thaw.dev/snapshot": subject.name, "thaw.dev/on-failure": "fail"}
    for device in (first, last):
        began = time.monotonic()
        back, *_ = lane.boot(subject, f"moved-to-{device}", notes, device)
        compare("the worker on another GPU", subject, cold.answer, back.answer)
        lane.clear()
        told = {"from": last, "to": device, **back.times()}
        record.add(told, "moved")
        say(f"from GPU {last} to GPU {device} in {time.monotonic() - began:.1f} s; all the same")


def shared(
    lane: GpuLane, gib: float, device: str, path: str, restores: Restores, record: Record
) -> None:
    """Two processes on two GPUs with NCCL between them, which is torn down and built up again.

    `path`: library or driver; a container with several GPUs has the library only if it asks for it.
    """
    words = ("-m", "gpu.ranks", str(gib), str(PORT), device)
    name = f"nccl-2x{gib:g}g"
    subject = Subject(
        name,
        words,
        ("sums",),
        environment=_NCCL,
        annotations={**_ACTIONS, "thaw.dev/gpu-memory": "library"},
        shared_memory=_SHARED_MEMORY,
    )
    chosen = by_driver(subject) if path == "driver" else subject
    through_containerd(lane, chosen, restores, record)
