"""What a container must be like so that it can be snapshotted: its spec, changed at Create.

io_uring: CRIU cannot dump it, and libraries that find it use it. Denied with ENOSYS they go on
without, as on a kernel that has none. That protects nobody, so it is no part of what a snapshot and
a pod are compared by: see compared().

The environment: NCCL and PyTorch are told not to hold what no driver can save. A pod that sets one
of these variables has its way.

Whatever is done here twice is as if done once. The daemon imports this: nothing outside of its
import budget.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")

# Variable, value, what it is for: the README's table.
ENVIRONMENT = (
    ("NCCL_CUMEM_ENABLE", "0", "no memory that is shared by handles, which is not restored"),
    ("NCCL_P2P_DISABLE", "1", "no mappings of other GPUs' memory"),
    ("NCCL_NVLS_ENABLE", "0", "no multicast objects of NVLink switches"),
    ("NCCL_IB_DISABLE", "1", "no InfiniBand: its queues cannot be dumped"),
    ("TORCH_NCCL_ENABLE_MONITORING", "0", "no watchdog that takes the pause for a hang"),
)

_ALLOW, _ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
# Without them a program of another ABI of the machine would be killed by its first system call.
_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}
# Whoever wrote that means it; and such a process has no io_uring either.
_HARDER = (
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
)


def make_checkpointable(spec: dict[str, Any], *, gpus: bool) -> None:
    """Change the spec of a container that may be snapshotted; `gpus`: it is given some."""
    deny_io_uring(spec)
    if gpus:
        set_environment(spec)


def deny_io_uring(spec: dict[str, Any]) -> None:
    """In its seccomp profile, or by one that allows everything else if it has none."""
    linux = spec.get("linux") or {}
    spec["linux"] = {**linux, "seccomp": denied(linux.get("seccomp"))}


def set_environment(spec: dict[str, Any]) -> None:
    """Add the variables that the container has not got."""
    process = spec.get("process") or {}
    env = list(process.get("env") or [])
    there = {entry.partition("=")[0] for entry in env}
    env += [f"{name}={value}" for name, value, _ in ENVIRONMENT if name not in there]
    spec["process"] = {**process, "env": env}


def denied(profile: Mapping[str, Any] | None) -> dict[str, Any]:
    """A seccomp profile that is `profile` otherwise: an OCI spec's linux.seccomp."""
    if not profile:
        return _minimal()
    rules: list[dict[str, Any]] = []
    harder: set[str] = set()
    calls: set[str] = set()
    for rule in profile.get("syscalls") or []:
        names = rule.get("names") or []
        if rule.get("action") in _HARDER and not rule.get("args"):
            harder.update(names)
            rules.append(rule)
            continue
        # Each call has one rule only: with two, which one holds is libseccomp's affair.
        calls.update(name for name in names if name in IO_URING)
        others = [name for name in names if name not in IO_URING]
        if others:
            rules.append({**rule, "names": others})
    if profile.get("defaultAction") not in _HARDER:
        calls.update(IO_URING)
    left = [name for name in IO_URING if name in calls and name not in harder]
    if left and not _by_default(profile):
        rules.append(_rule(left))
    return {**profile, "syscalls": rules}


def compared(profile: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What two profiles are compared by, with and without the denial; None: unconfined."""
    same = denied(profile)
    return None if same == _minimal() else same


def _by_default(profile: Mapping[str, Any]) -> bool:
    """Whether what it does not name is denied in our way: libseccomp takes no rule that says so."""
    told = profile.get("defaultErrnoRet") == errno.ENOSYS
    return profile.get("defaultAction") == _ERRNO and told


def _minimal() -> dict[str, Any]:
    profile: dict[str, Any] = {"defaultAction": _ALLOW, "syscalls": [_rule(IO_URING)]}
    architectures = _ARCHITECTURES.get(os.uname().machine)
    return {**profile, "architectures": architectures} if architectures else profile


def _rule(names: tuple[str, ...] | list[str]) -> dict[str, Any]:
    return {"names": list(names), "action": _ERRNO, "errnoRet": errno.ENOSYS}
