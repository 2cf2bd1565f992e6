"""What a spec lets the processes of a container be, and become, by the rules of kernel and runc."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shim.gpu.spec import compared
from shim.lean.values import Value
from shim.snapshot import capabilities


class Allowance(Value):
    """What the live spec allows. Capabilities are sets of bits (capabilities.py)."""

    uids: frozenset[int] | None  # None: any
    gids: frozenset[int] | None
    bounding: int
    attainable: int  # what a thread can come to hold
    no_new_privileges: bool
    filtered: bool  # the pod has a seccomp profile; what Thaw denies by itself is none
    labels: frozenset[bytes]  # of security modules; with none in the spec, none or our own
    user_namespace: bool
    real_time: bool

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Allowance:
        """What `spec` says of its process, and of what that may become."""
        process, linux = spec.get("process") or {}, spec.get("linux") or {}
        user = process.get("user") or {}
        uid, gid = user.get("uid", 0), user.get("gid", 0)
        bounding = _set(process, "bounding")
        labels = (process.get("apparmorProfile"), process.get("selinuxLabel"))
        kinds = [entry.get("type") for entry in linux.get("namespaces") or []]
        any_uid = uid == 0 and bounding & capabilities.bits(["CAP_SETUID"])
        any_gid = uid == 0 and bounding & capabilities.bits(["CAP_SETGID"])
        return cls(
            uids=None if any_uid else frozenset([uid]),
            gids=None if any_gid else frozenset([gid, *(user.get("additionalGids") or [])]),
            bounding=bounding,
            attainable=_attainable(process, uid, bounding),
            no_new_privileges=bool(process.get("noNewPrivileges")),
            filtered=bool(compared(linux.get("seccomp"))),
            labels=frozenset(x.encode() for x in labels if x and x != "unconfined")
            or frozenset([b"", _own_label()]),
            user_namespace="user" in kinds,
            real_time=bool(process.get("scheduler"))
            or bool(bounding & capabilities.bits(["CAP_SYS_NICE"])),
        )


def _attainable(process: Mapping[str, Any], uid: int, bounding: int) -> int:
    """The capabilities that a process, begun as the spec says, can come to have: capabilities(7).

    Executing a file can give all of the bounding set, by the file's capabilities or its owner.
    Under no_new_privs it gives nothing: root keeps what was permitted, others what was ambient.
    """
    if not process.get("noNewPrivileges"):
        return bounding
    return bounding & _set(process, "ambient" if uid else "permitted")


def _own_label() -> bytes:
    """What a container inherits whose spec names no label: that of the runtime, mostly none."""
    try:
        with open("/proc/self/attr/current", "rb") as file:
            label = file.read().split(b" ")[0].strip(b"\0\n")  # the mode follows
    except OSError:  # no security module has labels here
        return b""
    return b"" if label == b"unconfined" else label


def _set(process: Mapping[str, Any], kind: str) -> int:
    return capabilities.bits((process.get("capabilities") or {}).get(kind) or [])
