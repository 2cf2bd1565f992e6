"""The container that a snapshot is tried out in, derived from that of its original: pure functions.

Whatever the original shares with others the trial has for itself, empty: network, IPC, UTS. What
it does not need, it does not have: annotations, hooks that run, a place in the pod's cgroup and a
pod's share of the processors there. The rest is as it was, above all what a restore looks at:
mounts, rights, limits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from shim.bundle import namespace_path, steer_criu
from shim.snapshot.config import MountPoint
from shim.snapshot.mounts import Resolve

_FIRST_TO_GO = 1000  # oom_score_adj: when memory is short, no worker ends for a trial's sake
_OWN = ("network", "ipc", "uts", "mount", "pid")
_NEW = ("ipc", "uts")
# Of two containers in one cgroup: how the processors are divided between them. A pod without a
# request has a share of 2, which beside all pods of a busy node is not enough for a restore within
# its deadline (of 90 s, two processors and four programs that wanted them); another's 16384 would
# be too much beside the node's services. Without any it is 1024, or a weight of 100, as theirs are.
_SHARES = (
    *(("cpu", name) for name in ("shares", "idle")),
    *(("unified", name) for name in ("cpu.weight", "cpu.weight.nice", "cpu.idle")),
)
_PROPAGATION = frozenset(["shared", "slave", "rshared", "rslave"])
_FLAGS = frozenset(["nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime"])


@dataclass(frozen=True)
class Bind:
    """A mount of the spec through which a process can write to what is not its own."""

    source: str
    destination: str
    recursive: bool  # it brings along what is mounted below


def reasons(spec: Mapping[str, Any]) -> Iterator[str]:
    """Why such a container cannot have a second one beside it."""
    if (spec.get("process") or {}).get("terminal"):
        yield "it has a terminal"
    own = {kind: namespace_path(dict(spec), kind) for kind in (*_OWN, "user")}
    if own.pop("user") is not None:
        yield "it has a user namespace"
    for kind in (kind for kind, path in own.items() if path is None):
        yield f"it shares the host's {kind} namespace"
    for mount in spec.get("mounts") or []:
        if _PROPAGATION & set(mount.get("options") or []):
            yield f"mounts in {mount['destination']} are also seen elsewhere"


def writable(spec: Mapping[str, Any]) -> list[Bind]:
    """The binds that are not read-only."""
    found = []
    for mount in spec.get("mounts") or []:
        options = mount.get("options") or []
        bound = mount.get("type") == "bind" or "bind" in options or "rbind" in options
        if bound and "ro" not in options:
            place = os.path.normpath(mount["destination"])
            found.append(Bind(mount["source"], place, "rbind" in options))
    return found


def derived(
    live: Mapping[str, Any],
    sources: Mapping[str, str],
    *,
    network: str,
    cgroup: str,
    criu_config: str,
) -> dict[str, Any]:
    """The trial's spec. `sources` are what is bound to which destination instead of the live one's.

    `network` is the path of its network namespace, used where the live one has joined its own.
    """
    spec: dict[str, Any] = deepcopy(dict(live))
    spec["annotations"] = {}
    steer_criu(spec, criu_config)
    hooks = spec.pop("hooks", None) or {}
    if hooks.get("createContainer"):  # not run by a restore; they explain mounts: gpu/hooks.py
        spec["hooks"] = {"createContainer": hooks["createContainer"]}
    spec["root"] = {**(spec.get("root") or {}), "path": "rootfs"}
    for mount in spec.get("mounts") or []:
        instead = sources.get(os.path.normpath(mount["destination"]))
        if instead is not None:
            mount["source"] = instead
    linux = spec.setdefault("linux", {})
    linux["cgroupsPath"] = cgroup
    linux.pop("intelRdt", None)
    resources = linux.get("resources") or {}
    for kind, name in _SHARES:
        (resources.get(kind) or {}).pop(name, None)
    linux["namespaces"] = [_namespace(entry, network) for entry in linux.get("namespaces") or []]
    spec.setdefault("process", {})["oomScoreAdj"] = _FIRST_TO_GO
    return spec


def _namespace(entry: Mapping[str, Any], network: str) -> dict[str, Any]:
    kind = entry.get("type")
    if kind == "network" and entry.get("path"):
        return {**entry, "path": network}
    if kind in _NEW:
        return {name: value for name, value in entry.items() if name != "path"}
    return dict(entry)


def cgroups_path(name: str, *, systemd: bool) -> str:
    """Where the trial's processes are counted: in no pod's account."""
    return f"system.slice:thaw:{name}" if systemd else f"/thaw-{name}"


def flags_of(mounts: list[MountPoint], place: str) -> list[str]:
    """The flags of the mount that is to be seen at a place."""
    found = [point for point in mounts if point.path == place]
    return [option for option in found[-1].options if option in _FLAGS] if found else []


def as_tried(
    mounts: list[MountPoint], kinds: Mapping[str, str], resolve: Resolve
) -> list[MountPoint]:
    """The mounts as they will be in the trial: `kinds` are the file systems at destinations."""
    instead = {resolve(place): kind for place, kind in kinds.items()}
    return [replace(point, type=instead.get(point.path, point.type)) for point in mounts]
