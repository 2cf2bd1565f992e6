"""Reading an Origin out of an OCI spec: the same function for the dump and for the restore.

Of the environment only names are taken: its values are secrets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from shim.annotations import CONTAINER_NAME, IMAGE_NAME, POD_NAMESPACE
from shim.gpu import preload
from shim.gpu.spec import compared
from shim.lean.digests import sha256
from shim.namespaces import is_own
from shim.snapshot.config import Origin, SpecMount
from shim.snapshot.nodes import nodes_of
from shim.snapshot.token import service_account

NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "user", "cgroup", "time")
_LINKS = {"network": "net", "mount": "mnt"}


def origin_of(spec: Mapping[str, Any], image: str, image_digest: str) -> Origin:
    """What `spec` says, with the image that containerd says it was made from.

    Of the GPU memory library, which is ours, there is only its version.
    """
    library, spec = preload.digest_of(spec), preload.without(spec)
    process = spec.get("process") or {}
    user = process.get("user") or {}
    notes = spec.get("annotations") or {}
    groups = sorted(user.get("additionalGids") or [])
    seccomp = compared((spec.get("linux") or {}).get("seccomp"))
    return Origin(
        container=notes.get(CONTAINER_NAME, ""),
        image=image or notes.get(IMAGE_NAME, ""),
        image_digest=image_digest,
        args=list(process.get("args") or []),
        cwd=process.get("cwd", "/"),
        terminal=bool(process.get("terminal")),
        user=[user.get("uid", 0), user.get("gid", 0), *groups],
        capabilities={
            name: sorted(names or []) for name, names in (process.get("capabilities") or {}).items()
        },
        no_new_privileges=bool(process.get("noNewPrivileges")),
        seccomp=_digest(seccomp) if seccomp else "",
        apparmor=process.get("apparmorProfile", ""),
        selinux=process.get("selinuxLabel", ""),
        namespaces=_namespaces(spec),
        mounts=_mounts(spec),
        read_only=bool((spec.get("root") or {}).get("readonly")),
        env=sorted({entry.partition("=")[0] for entry in process.get("env") or []}),
        namespace=notes.get(POD_NAMESPACE, ""),
        service_account=service_account(spec),
        devices=nodes_of(spec),
        library=library,
    )


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return sha256(canonical.encode())


def _mounts(spec: Mapping[str, Any]) -> list[SpecMount]:
    mounts = [
        SpecMount(
            os.path.normpath(mount["destination"]),
            mount.get("type", "bind"),
            sorted(mount.get("options") or []),
        )
        for mount in spec.get("mounts") or []
    ]
    return sorted(mounts, key=lambda mount: mount.destination)


def _namespaces(spec: Mapping[str, Any]) -> dict[str, str]:
    given = {
        entry.get("type"): entry.get("path", "")
        for entry in (spec.get("linux") or {}).get("namespaces") or []
    }
    return {kind: _namespace(kind, given.get(kind)) for kind in NAMESPACES}


def _namespace(kind: str, path: str | None) -> str:
    if path is None:
        return "host"
    if not path:
        return "new"
    # A pod on the host's network still names a path: its sandbox's, which is the host's. The
    # host's are those of containerd, which are ours.
    return "host" if is_own(path, _LINKS.get(kind, kind)) else "joined"
