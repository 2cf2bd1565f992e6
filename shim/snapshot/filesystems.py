"""Which file systems CRIU would mount by itself: an image can name any, and any device with it.

Binds are not among them: their sources come from the live spec. Nor is the root, which runc gives
to CRIU. What is mounted in the end, where and how, is compared after the restore (mounts.py); but a
disk of the host must not be mounted at all, nor an interpreter be registered (binfmt_misc).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from shim.proto import criu_pb as pb
from shim.snapshot.bounded import decoded, several

_MAGIC = 0x55563928
_MOST = 1 << 22  # bytes; some ten thousand mounts
_IMAGE = re.compile(r"mountpoints-[0-9]+\.img", re.ASCII)

# Those that hold nothing but what the container's own namespaces hold.
_NAMES = {
    pb.FSTYPE_PROC: "proc",
    pb.FSTYPE_SYSFS: "sysfs",
    pb.FSTYPE_TMPFS: "tmpfs",
    pb.FSTYPE_DEVPTS: "devpts",
    pb.FSTYPE_MQUEUE: "mqueue",
    pb.FSTYPE_CGROUP: "cgroup",
    pb.FSTYPE_CGROUP2: "cgroup2",
}


def foreign(images: Path, names: Collection[str], spec: Mapping[str, Any]) -> Iterator[str]:
    """What CRIU would mount and the live spec does not mount, a sentence each.

    `names` are the files in the folder `images`. Raises Damaged and NotIndexable.
    """
    own = {mount.get("type", "") for mount in spec.get("mounts") or []}
    tables = sorted(filter(_IMAGE.fullmatch, names))
    for name in tables:
        mounts = [decoded(pb.Mount, r, name) for r in several(images, name, _MAGIC, _MOST)]
        # runc gives CRIU the first namespace's root. Of another one CRIU makes the root itself, if
        # it knows the file system; most it does not (FSTYPE_UNKNOWN).
        known = {mount.mnt_id for mount in mounts} if len(tables) == 1 else None
        for mount in mounts:
            if _by_criu(mount, known) and mount.fstype not in _NAMES and _kind(mount) not in own:
                place = mount.mountpoint[:200].decode(errors="replace")
                yield f"CRIU would mount {_kind(mount)!a:.80} at {place!a}, the pod's spec does not"


def _by_criu(mount: pb.Mount, known: Collection[int] | None) -> bool:
    if mount.ext_key or mount.ext_mount:
        return False
    if known is None:
        return mount.mountpoint != b"/" or mount.fstype != pb.FSTYPE_UNKNOWN
    return mount.parent_mnt_id in known


def _kind(mount: pb.Mount) -> str:
    return mount.fsname.decode(errors="replace") or f"file system {mount.fstype}"
