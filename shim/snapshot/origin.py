"""Reading an Origin out of an OCI spec: the same function for the dump and for the restore.

Of the environment only names are taken: its values are secrets.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from typing import Any

from shim.annotations import CONTAINER_NAME, IMAGE_NAME
from shim.snapshot.config import Origin, SpecMount

NAMESPACE = "io.kubernetes.cri.sandbox-namespace"
_TOKENS = "/var/run/secrets/kubernetes.io/serviceaccount"
_LONGEST_TOKEN = 64 << 10  # bytes
_ACCOUNT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "user", "cgroup", "time")
_LINKS = {"network": "net", "mount": "mnt"}


def origin_of(spec: Mapping[str, Any], image: str, image_digest: str) -> Origin:
    """What `spec` says, with the image that containerd says it was made from."""
    process = spec.get("process") or {}
    user = process.get("user") or {}
    notes = spec.get("annotations") or {}
    groups = sorted(user.get("additionalGids") or [])
    seccomp = (spec.get("linux") or {}).get("seccomp")
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
        namespace=notes.get(NAMESPACE, ""),
        service_account=_service_account(spec),
    )


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


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
    return "host" if _same(path, f"/proc/self/ns/{_LINKS.get(kind, kind)}") else "joined"


def _same(path: str, other: str) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.stat(other))
    except OSError:
        return False


def _service_account(spec: Mapping[str, Any]) -> str:
    """Whose token is mounted into the container, as that says itself; empty if there is none."""
    for mount in spec.get("mounts") or []:
        if os.path.normpath(mount["destination"]) == _TOKENS:
            try:
                return _account_of(_read_token(os.path.join(mount.get("source", ""), "token")))
            except (OSError, ValueError, RecursionError):
                return ""
    return ""


def _read_token(path: str) -> bytes:
    # kubelet's token is reached by links. The pod may have mounted something else there instead,
    # so it is not waited for, and no more than a name is taken from it.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("no file")
        return os.read(fd, _LONGEST_TOKEN)
    finally:
        os.close(fd)


def _account_of(token: bytes) -> str:
    """The claim kubernetes.io/serviceaccount/name of a JSON web token (RFC 7519), unverified."""
    payload = token.split(b".")[1] if token.count(b".") == 2 else b""
    claims = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
    for key in ("kubernetes.io", "serviceaccount", "name"):
        if not isinstance(claims, dict):
            return ""
        claims = claims.get(key)
    return claims if isinstance(claims, str) and _ACCOUNT.fullmatch(claims) else ""
