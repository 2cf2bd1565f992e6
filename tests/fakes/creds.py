"""The threads of a container as CRIU dumps them, and the spec that they come from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from fakes.images import Images
from shim.proto import criu_pb as pb
from shim.snapshot import capabilities, privileges
from shim.snapshot import images as criu

BOUNDING = ("CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW")
ALL = capabilities.bits(BOUNDING)
SPEC: dict[str, Any] = {
    "process": {
        "user": {"uid": 1000, "gid": 1001, "additionalGids": [5, 6]},
        "capabilities": {"bounding": list(BOUNDING), "permitted": list(BOUNDING)},
        "noNewPrivileges": True,
        "apparmorProfile": "cri-containerd",
    },
    "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}, "namespaces": [{"type": "pid"}]},
}


def spec(**process: Any) -> dict[str, Any]:
    """SPEC with another process; `linux` has its own name, `uid`, `bounding` too."""
    made = copy.deepcopy(SPEC)
    made["linux"].update(process.pop("linux", {}))
    if "uid" in process:
        made["process"]["user"] = {"uid": process["uid"], "gid": process.pop("uid")}
    if "bounding" in process:
        made["process"]["capabilities"]["bounding"] = process.pop("bounding")
    made["process"].update(process)
    return made


def halves(names: int) -> list[int]:
    """A set of capabilities as CRIU writes it."""
    return [names & 0xFFFF_FFFF, names >> 32]


def creds(uid: int = 1000, gid: int = 1001, **changes: Any) -> pb.Creds:
    """What a thread of SPEC's container has."""
    made = pb.Creds(groups=[5, 6], no_new_privs=1, lsm_profile=b"cri-containerd")
    made.uid = made.euid = made.suid = made.fsuid = uid
    made.gid = made.egid = made.sgid = made.fsgid = gid
    made.cap_bnd = halves(ALL)
    made.cap_inh, made.cap_prm, made.cap_eff, made.cap_amb = ([0, 0] for _ in range(4))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


class Dump:
    """A folder of images in which one process has threads; `core` can be changed before `write`."""

    def __init__(self, folder: Path, *numbers: int) -> None:
        self.folder = folder
        self.numbers = numbers or (1,)
        self.cores = {number: core(number == self.numbers[0]) for number in self.numbers}
        self.filters = [pb.SeccompFilter(filter=bytes(8))]

    def write(self, **creds: Any) -> Path:
        """Write it; `creds` are changed in the last thread."""
        images = Images(self.folder)
        images._tree = [pb.Process(pid=self.numbers[0], threads=self.numbers)]
        last = self.cores[self.numbers[-1]].thread_core
        assert last is not None
        for name, value in creds.items():
            setattr(last.creds, name, value)
        for number, made in self.cores.items():
            images.put(f"core-{number}.img", criu.CORE, made)
        images.put("seccomp.img", privileges._SECCOMP, pb.SeccompFilters(filters=self.filters))
        return images.write()


def core(first: bool = True, **changes: Any) -> pb.Core:
    """The core of a thread with a seccomp filter."""
    thread = pb.ThreadCore(creds=creds(), seccomp_mode=pb.SECCOMP_FILTER, comm=b"worker\0")
    for name, value in changes.items():
        setattr(thread, name, value)
    task = pb.TaskCore(task_state=pb.TASK_ALIVE, comm=b"worker") if first else None
    return pb.Core(mtype=1, tc=task, thread_core=thread)
