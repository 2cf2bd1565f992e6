"""The name of `auto`: derived from what determines the worker, the same for equal containers.

What goes into it is what a snapshot must have in common with a container to fit, and what its
memory depends on beyond that: the image, the command, the environment, limits, the namespace. The
environment's values are secrets at times, and names are seen by everybody, so all of it goes
through a keyed hash; the key stays in the store, and is shared by the nodes that share the store.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shim.errors import FailedPrecondition
from shim.snapshot.config import Host, Origin

KEY = "key"
_KEY_LENGTH = 32
_DIGITS = 20
_CONTAINER_LENGTH = 30
_POD_NAME = "io.kubernetes.cri.sandbox-name"
_POD_UID = "io.kubernetes.cri.sandbox-uid"

# What kubelet puts into every container about the pod itself and the services around it.
_OF_THE_POD = re.compile(
    r"HOSTNAME|(MY_)?(POD|NODE)_(NAME|IP|IPS|UID|HOST_IP)|KUBERNETES_.*"
    r"|.*_SERVICE_(HOST|PORT)(_.*)?|.*_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
)


def name_of(spec: Mapping[str, Any], origin: Origin, host: Host, key: bytes) -> str:
    """`auto-CONTAINER-HEX`, or `auto-HEX` without CRI. Raises FailedPrecondition without a digest.

    Without the image's digest two images under one tag would have one name.
    """
    if not origin.image_digest:
        raise FailedPrecondition(
            "containerd does not say from which image this container is",
            hint="`auto` needs the image's digest; name a snapshot instead",
        )
    facts = json.dumps(_facts(spec, origin, host), sort_keys=True, separators=(",", ":"))
    digits = hmac.new(key, facts.encode(), hashlib.sha256).hexdigest()[:_DIGITS]
    container = re.sub(r"[^a-z0-9.-]", "", origin.container.lower())[:_CONTAINER_LENGTH]
    return f"auto-{container}-{digits}" if container else f"auto-{digits}"


def key_of(store: Path) -> bytes:
    """The key of a store, made if there is none. Raises OSError."""
    path = store / KEY
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = store / f".{KEY}-{os.urandom(6).hex()}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, os.urandom(_KEY_LENGTH))
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # another node was quicker: its key counts
    finally:
        draft.unlink()
    return _read(path)


def _read(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != _KEY_LENGTH:
        raise FailedPrecondition(
            f"{path} is no key of ours", hint="remove it: new names are derived then"
        )
    return key


def _facts(spec: Mapping[str, Any], origin: Origin, host: Host) -> dict[str, Any]:
    linux = spec.get("linux") or {}
    return {
        "namespace": origin.namespace,
        "container": origin.container,
        "image": origin.image_digest,
        "args": origin.args,
        "cwd": origin.cwd,
        "user": origin.user,
        "terminal": origin.terminal,
        "environment": sorted(_environment(spec)),
        "capabilities": origin.capabilities,
        "seccomp": origin.seccomp,
        "mounts": [[m.destination, m.type, m.options] for m in origin.mounts],
        "resources": {k: v for k, v in (linux.get("resources") or {}).items() if k != "devices"},
        "architecture": host.architecture,
        "cpu": host.cpu_features,
        "gpus": [[gpu.model, gpu.memory, gpu.driver, gpu.count] for gpu in host.gpus],
    }


def _environment(spec: Mapping[str, Any]) -> Iterator[str]:
    """NAME=VALUE of what does not tell one pod from another."""
    notes = spec.get("annotations") or {}
    identity = {notes.get(_POD_NAME), notes.get(_POD_UID), spec.get("hostname")} - {None, ""}
    for entry in (spec.get("process") or {}).get("env") or []:
        name, _, value = entry.partition("=")
        if not _OF_THE_POD.fullmatch(name) and value not in identity:
            yield entry
