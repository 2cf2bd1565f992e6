"""Whether containerd is there, and would give Thaw the pods that ask for it."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from shim.annotations import SNAPSHOT
from shim.doctor.node import Node
from shim.doctor.verdict import Verdict, bad, ok

RUNTIME = "io.containerd.thaw.v1"
SHIM = "containerd-shim-thaw-v1"
_WRITE = "run runtimeclass/install.sh --write-containerd, and restart containerd"


def daemon(node: Node) -> Iterator[Verdict]:
    """containerd answers."""
    try:
        yield ok(f"containerd {node.daemon.version()} at {node.address}")
    except OSError as error:
        yield bad(
            f"no containerd at {node.address}: {error.strerror}",
            "start it, or name its socket: --address PATH",
        )


def handler(node: Node) -> Iterator[Verdict]:
    """The handler is configured, and annotations come through to it."""
    try:
        found = _ours(node)
    except (OSError, ValueError) as error:
        yield bad(
            f"containerd does not tell which handlers CRI has: {_reason(error)}",
            "start it, or name its program: --containerd EXE; if it runs, its log says why its CRI "
            "does not",
        )
        return
    if not found:
        yield bad(f"no handler has the runtime type {RUNTIME}", _WRITE)
    for name, table in found.items():
        yield from _annotations(name, table)


def shim(node: Node) -> Iterator[Verdict]:
    """containerd finds the shim, in the PATH that it was started with."""
    try:
        path = ":".join(node.daemon.search_path())
        whose = "containerd's PATH"
    except OSError:
        path, whose = os.environ.get("PATH", ""), "PATH"
    place = shutil.which(SHIM, path=path)
    if place:
        yield ok(place)
    else:
        yield bad(
            f"no {SHIM} in {whose} ({path})",
            "runtimeclass/install.sh --bin DIR links it into one of these folders",
        )


def cgroups(node: Node) -> Iterator[Verdict]:
    """Thaw's containers are put where the node's other containers are."""
    version = 2 if node.path("/sys/fs/cgroup/cgroup.controllers").exists() else 1
    ours = node.config.flag("SystemdCgroup")
    if ours and not node.path("/run/systemd/system").is_dir():
        yield bad("SystemdCgroup = true, but systemd does not run here", "set it to false")
        return
    try:
        theirs = _systemd(_runtimes(_configuration(node)))
    except (OSError, ValueError):
        theirs = None  # `handler` has said why
    said = f"version {version}, made by {_driver(ours)}"
    if theirs is None or theirs == ours:
        yield ok(said if theirs is None else f"{said}, as runc's handler has it")
    else:
        yield bad(
            f"{said}, but by {_driver(theirs)} for the handler runc",
            f"set SystemdCgroup = {str(theirs).lower()} in Thaw's configuration",
        )


def _annotations(name: str, table: Mapping[str, Any]) -> Iterator[Verdict]:
    patterns = table.get("podannotations") or []
    if any(isinstance(p, str) and fnmatchcase(SNAPSHOT, p) for p in patterns):
        yield ok(f"handler {name}: {RUNTIME}, with thaw.dev/*")
    else:
        yield bad(
            f"pod_annotations of the handler {name} lack thaw.dev/*",
            "without them Thaw never sees what a pod asks for: " + _WRITE,
        )


def _ours(node: Node) -> dict[str, Mapping[str, Any]]:
    return {
        name: table
        for name, table in _runtimes(_configuration(node)).items()
        if RUNTIME in (table.get("runtimetype"), table.get("type"))
    }


def _configuration(node: Node) -> Mapping[str, Any]:
    """What CRI runs with or, if no containerd runs, what one would read from its files."""
    try:
        daemon = node.daemon
    except OSError:
        return _in_files(node)
    return daemon.cri()


def _in_files(node: Node) -> Mapping[str, Any]:
    status, said = node.run(node.containerd, "config", "dump")
    if status:
        raise ValueError(said.splitlines()[-1] if said else f"exit status {status}")
    return tomllib.loads(said)


def _runtimes(document: object) -> dict[str, dict[str, Any]]:
    """The table of handlers, wherever in the document it is; names of keys as _bare() has them.

    CRI gives JSON, containerd's files are TOML, both have changed their names from version to
    version: runtime_type, runtimeType.
    """
    if not isinstance(document, dict):
        return {}
    found = document.get("runtimes")
    if isinstance(found, dict):
        tables = {name: table for name, table in found.items() if isinstance(table, dict)}
        return {name: {_bare(key): v for key, v in table.items()} for name, table in tables.items()}
    for value in document.values():
        if inner := _runtimes(value):
            return inner
    return {}


def _bare(key: str) -> str:
    return key.replace("_", "").lower()


def _systemd(runtimes: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """Whether the handler runc uses systemd's cgroups; None if there is no such handler."""
    options = runtimes.get("runc", {}).get("options")
    if isinstance(options, str):  # as 1.6 tells it
        options = json.loads(options)
    if "runc" not in runtimes:
        return None
    return bool(options.get("SystemdCgroup")) if isinstance(options, dict) else False


def _driver(systemd: bool) -> str:
    return "systemd" if systemd else "runc itself"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
