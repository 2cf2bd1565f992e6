"""The state of a container, as a runtime hands it to a hook on stdin.

The OCI runtime specification, "State" in runtime.md and "POSIX-platform Hooks" in config.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from shim.errors import InvalidArgument

_HINT = "a hook wants the OCI state of a container on stdin"
_LARGEST = 1 << 22  # bytes; etcd takes no larger annotations, all in all


@dataclass(frozen=True)
class State:
    """The container: its id, a process of it as seen from here, and its bundle's folder."""

    id: str
    status: str
    pid: int
    bundle: str
    annotations: Mapping[str, str] = field(default_factory=dict)


def parse(text: bytes) -> State:
    """Read a state. Raises InvalidArgument for anything that names no process and bundle."""
    try:
        document = json.loads(text[:_LARGEST])
    except (ValueError, RecursionError) as error:
        said = f"{error}" if text.strip() else "nothing came"
        raise InvalidArgument(f"the container's state cannot be read: {said}", hint=_HINT) from None
    if not isinstance(document, dict):
        raise InvalidArgument("the container's state is no JSON object", hint=_HINT)
    for name, kind in (("ociVersion", str), ("id", str), ("status", str), ("bundle", str)):
        if not isinstance(document.get(name), kind) or not document[name]:
            raise InvalidArgument(f"the container's state has no {name}", hint=_HINT)
    pid = document.get("pid")
    if type(pid) is not int or pid <= 0:  # a stopped container has none, or 0
        raise InvalidArgument(f"the container {document['id']!r:.80} has no process", hint=_HINT)
    annotations = document.get("annotations") or {}
    if not isinstance(annotations, dict):
        raise InvalidArgument("the container's annotations are no JSON object", hint=_HINT)
    return State(document["id"], document["status"], pid, document["bundle"], annotations)
