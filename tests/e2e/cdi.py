"""Devices that containerd gives to containers by CDI, from 1.7 on: files in a folder of the node.

See the Container Device Interface's SPEC.md. The folder is everybody's, so files have names of
their own and are removed.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

_FOLDER = Path("/var/run/cdi")  # where containerd looks by default
_MAJOR = 195  # NVIDIA's


class Device(NamedTuple):
    """A device that a container can be given, by annotations of its own."""

    annotations: dict[str, str]


@contextmanager
def described(name: str, **edits: Any) -> Iterator[Device]:
    """A device for the block; `edits` is what it makes of a spec: CDI's containerEdits."""
    kind = f"thaw.local/{name}"
    about = {
        "cdiVersion": "0.5.0",
        "kind": kind,
        "devices": [{"name": "all", "containerEdits": edits}],
    }
    _FOLDER.mkdir(parents=True, exist_ok=True)
    path = _FOLDER / f"thaw-e2e-{name}-{os.getpid()}.json"
    draft = path.with_suffix(".draft")  # containerd looks at any time
    draft.write_text(json.dumps(about))
    draft.rename(path)
    try:
        yield Device({f"cdi.k8s.io/{name}": f"{kind}=all"})
    finally:
        path.unlink()  # the folder stays: somebody may be about to write there


def node(folder: Path, minor: int = 0) -> dict[str, Any]:
    """A node with a GPU's numbers, on a machine that may have none: an entry of deviceNodes."""
    path = folder / f"nvidia{minor}"
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(_MAJOR, minor))
    return {"path": f"/dev/nvidia{minor}", "hostPath": str(path)}


def hook(stage: str, path: Path, *args: str) -> dict[str, Any]:
    """A program that runs as a container is created: an entry of hooks."""
    return {"hookName": stage, "path": str(path), "args": [path.name, *args]}


def program(path: Path, *lines: str) -> Path:
    """A hook: it gets to know the container's root, and the pid of its first process."""
    head: Sequence[str] = [
        "#!/bin/sh -e",
        "state=$(cat)",
        r"""field() { printf %s "$state" | sed -n 's/.*"'$1'": *"\{0,1\}\([^",}]*\).*/\1/p'; }""",
        "root=$(field bundle)/rootfs pid=$(field pid)",
    ]
    path.write_text("\n".join([*head, *lines]) + "\n")
    path.chmod(0o755)
    return path
