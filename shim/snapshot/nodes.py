"""The device nodes that a spec gives a container, and what changes between two specs.

A container has the nodes that its spec lists and those that every runtime makes (the runtime
specification's "default devices", config-linux.md). A worker is restored in a pod with other
devices than it was dumped with: which GPU it got is not the worker's affair.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from shim.lean.values import Value
from shim.snapshot.config import DeviceNode

_KINDS = {"c": "c", "u": "c", "b": "b", "p": "p"}
_MODE = 0o666  # runc's, if the spec says nothing
_DEFAULTS = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
}
_MULTIPLEXER = "/dev/ptmx"  # a link to that of the container's own devpts, whatever the spec says


class Exchange(Value):
    """What is to be done to a container's nodes, so that they are those of another spec."""

    gone: tuple[DeviceNode, ...] = ()  # those that only the old one has
    made: tuple[DeviceNode, ...] = ()  # those that the old one has not, or others at their paths


def nodes_of(spec: Mapping[str, Any]) -> list[DeviceNode]:
    """The nodes that a spec lists, by path; of several at one path the first, as runc does it."""
    found: dict[str, DeviceNode] = {}
    for entry in (spec.get("linux") or {}).get("devices") or ():
        path = os.path.normpath("/" + str(entry.get("path", "")).lstrip("/"))
        kind = _KINDS.get(entry.get("type", ""))
        if kind is None or path in ("/", _MULTIPLEXER):
            continue
        mode = entry.get("fileMode")
        node = DeviceNode(
            path=path,
            type=kind,
            major=0 if kind == "p" else entry.get("major") or 0,
            minor=0 if kind == "p" else entry.get("minor") or 0,
            mode=(_MODE if mode is None else mode) & 0o7777,
            uid=entry.get("uid") or 0,
            gid=entry.get("gid") or 0,
        )
        found.setdefault(path, node)
    return [found[path] for path in sorted(found)]


def exchange(former: Sequence[DeviceNode], spec: Mapping[str, Any]) -> Exchange:
    """What is to be done to a container that had the nodes `former`, to be as `spec` says.

    In a user namespace nothing: who cannot make nodes gets the machine's as mounts, and those are
    looked at with the others (mounts.py).
    """
    linux = spec.get("linux") or {}
    if any(entry.get("type") == "user" for entry in linux.get("namespaces") or ()):
        return Exchange()
    then, now = _by_path(former), _by_path(nodes_of(spec))
    return Exchange(
        gone=tuple(node for path, node in then.items() if path not in now),
        made=tuple(node for path, node in now.items() if then.get(path) != node),
    )


def _by_path(nodes: Sequence[DeviceNode]) -> dict[str, DeviceNode]:
    numbers = {path: DeviceNode(path, "c", *pair, _MODE, 0, 0) for path, pair in _DEFAULTS.items()}
    return {**numbers, **{node.path: node for node in nodes}}
