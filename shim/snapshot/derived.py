"""The name of `auto`: derived from what determines the worker, the same for equal containers.

What goes into it is what a snapshot must have in common with a container to fit, and what its
memory depends on beyond that: the image, the command, the environment, limits, the namespace, what
is mounted, with the contents of ConfigMaps and Secrets. Whatever is in doubt counts: two workers
must never share a name, while one that gets two names is only booted cold once more. The
environment's values are secrets at times, and names are seen by everybody, so all of it goes
through a keyed hash; the key stays in the store, and is shared by the nodes that share the store.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shim.annotations import POD_NAME, POD_UID, SANDBOX_ID
from shim.errors import FailedPrecondition
from shim.gpu import preload
from shim.gpu.given import VISIBLE
from shim.names import KEY
from shim.snapshot import token
from shim.snapshot.config import FORMAT, Host, Origin
from shim.snapshot.tree import open_directory
from shim.worker import control

_KEY_LENGTH = 32
_DIGITS = 20
_CONTAINER_LENGTH = 30

# By convention, what the downward API is asked for.
_OF_THE_POD = re.compile(r"(MY_)?(POD|NODE)_(NAME|IP|IPS|UID|HOST_IP)")
# What kubelet says of the services around, for a service X: X_SERVICE_HOST and these.
_OF_A_SERVICE = r"{}_(SERVICE_(HOST|PORT(_.+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
_SERVICE_HOST = "_SERVICE_HOST"
# Mounted anew for each pod by kubelet and containerd.
_OWN = frozenset(
    {
        *("/dev/termination-log", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm"),
        token.PLACE,
    }
)
_WITH_CONTENTS = ("/kubernetes.io~configmap/", "/kubernetes.io~secret/")
_MOST_CONTENTS = 8 << 20  # bytes of one volume; a ConfigMap or Secret has at most 1 MiB


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
    linux, spec = spec.get("linux") or {}, preload.without(spec)
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
        "sources": sorted(_sources(spec)),
        "resources": {k: v for k, v in (linux.get("resources") or {}).items() if k != "devices"},
        "architecture": host.architecture,
        "cpu": host.cpu_features,
        "kernel": host.kernel_features,
        "cgroup": host.cgroup,
        "format": FORMAT,
        "library": bool(origin.library),  # whichever version: who goes without is another worker
        "gpus": [[gpu.model, gpu.memory, gpu.driver, gpu.count] for gpu in host.gpus],
    }


def _environment(spec: Mapping[str, Any]) -> Iterator[str]:
    """NAME=VALUE of what does not tell one pod from another."""
    identity = _identity(spec)
    entries = [entry.partition("=") for entry in (spec.get("process") or {}).get("env") or []]
    services = _services({name: value for name, _, value in entries})
    for name, _, value in entries:
        if name == VISIBLE:  # which GPUs; what they are like counts, and how many
            continue
        if not (_OF_THE_POD.fullmatch(name) or services.fullmatch(name) or value in identity):
            yield f"{name}={value}"


def _identity(spec: Mapping[str, Any]) -> set[str]:
    notes = spec.get("annotations") or {}
    words = (notes.get(POD_NAME), notes.get(POD_UID), notes.get(SANDBOX_ID), spec.get("hostname"))
    return {word for word in words if word}


def _services(env: Mapping[str, str]) -> re.Pattern[str]:
    """What the names of variables about services are like: of those that are told in full.

    SERVER_PORT=8000 alone is somebody's setting.
    """
    found = []
    for name, host in env.items():
        service = name.removesuffix(_SERVICE_HOST)
        told = rf"(tcp|udp|sctp)://{re.escape(host)}:[0-9]+"
        if service != name and re.fullmatch(told, env.get(f"{service}_PORT", "")):
            found.append(_OF_A_SERVICE.format(re.escape(service)))
    return re.compile("|".join(found) or r"(?!)")


def _sources(spec: Mapping[str, Any]) -> Iterator[list[str]]:
    """Destination, source and contents of what the pod brings; without what tells pods apart."""
    identity = _identity(spec)
    ours = (*_OWN, control.place_of(spec))  # the control directory: every container has its own
    for mount in spec.get("mounts") or []:
        destination = os.path.normpath(mount["destination"])
        source = mount.get("source", "")
        if destination in ours or not os.path.isabs(source):
            continue
        contents = _contents(source) if any(kind in source for kind in _WITH_CONTENTS) else ""
        for word in identity:
            source = source.replace(word, "")
        yield [destination, source, contents]


def _contents(volume: str) -> str:
    """The SHA-256 of the files that kubelet has written into a volume, below its link ..data."""
    digest = hashlib.sha256()
    try:
        outer = open_directory(volume)
        try:
            folder = open_directory(os.readlink("..data", dir_fd=outer).rpartition("/")[2], outer)
        finally:
            os.close(outer)
        try:
            for part in _files(folder):
                digest.update(hashlib.sha256(part).digest())
        finally:
            os.close(folder)
    except OSError:
        return "unknown"
    return digest.hexdigest()


def _files(folder: int, left: int = _MOST_CONTENTS) -> Iterator[bytes]:
    """Names and contents, in order; what is no regular file there is none of kubelet's."""
    for name in sorted(os.listdir(folder)):
        place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                continue
            yield os.fsencode(name)
            with open(f"/proc/self/fd/{place}", "rb") as file:
                yield file.read(left)
        finally:
            os.close(place)
