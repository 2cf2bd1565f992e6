"""The config document of a snapshot: what it was made from, what with, and what it needs.

It is read from disk as untrusted input: every field is checked for its type before use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_type_hints

from shim.errors import Unfit

FORMAT = 1


@dataclass(frozen=True)
class SpecMount:
    """A mount of the OCI spec: what a restore cannot change. Options are sorted."""

    destination: str
    type: str
    options: list[str]


@dataclass(frozen=True)
class MountPoint:
    """A mount as the kernel shows it in the container's mountinfo. Options are sorted.

    `propagation` is "private", or the words "shared" and "slave" that apply.
    """

    path: str
    type: str
    options: list[str]
    propagation: str


@dataclass(frozen=True)
class Origin:
    """What the pod's spec says of a container, as far as a restored process is bound to it."""

    container: str  # name in the pod; empty without CRI
    image: str  # reference, for people
    image_digest: str  # empty if containerd could not be asked
    args: list[str]
    cwd: str
    terminal: bool
    user: list[int]  # uid, gid, then the additional groups, sorted
    capabilities: dict[str, list[str]]  # per set, sorted
    no_new_privileges: bool
    seccomp: str  # sha256 of the canonical JSON; empty: unconfined
    apparmor: str
    selinux: str
    namespaces: dict[str, str]  # type → "new", "joined" or "host"
    mounts: list[SpecMount]  # sorted by destination
    read_only: bool  # the root file system


@dataclass(frozen=True)
class Host:
    """The machine that dumps or shall restore."""

    architecture: str
    kernel: str
    criu: str
    cpu_features: list[str]  # sorted


@dataclass(frozen=True)
class Connections:
    """Established TCP connections at the dump: both ends inside the container, or one outside."""

    inside: int
    outside: int


@dataclass(frozen=True)
class SnapshotConfig:
    """The whole document. Times are RFC 3339 in UTC, sizes bytes on disk, durations seconds."""

    format: int
    created: str
    origin: Origin
    host: Host
    mounts: list[MountPoint]  # as seen inside, sorted by path
    volumes: list[str]  # destinations whose contents are in volumes/0, volumes/1, …
    difference: bool  # rootfs/ holds the upper directory
    connections: Connections
    images: dict[str, int]  # CRIU's files and their lengths in bytes
    sizes: dict[str, int] = field(default_factory=dict)
    timeline: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The document as it is written."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: bytes | str, path: str) -> SnapshotConfig:
        """Read a document. Raises Unfit naming `path` and the field."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unfit(f"{path}: {error}", hint="the snapshot is damaged") from error
        if not isinstance(document, dict):
            raise Unfit(f"{path}: not a JSON object", hint="the snapshot is damaged")
        if document.get("format") != FORMAT:
            raise Unfit(
                f"{path}: format {_shown(document.get('format'))} is not {FORMAT}",
                hint="it was made by another version of Thaw",
            )
        config: SnapshotConfig = _typed(document, cls, path)
        return config


def _typed(value: Any, kind: Any, where: str) -> Any:
    """`value` as a `kind`: a dataclass, list[…], dict[str, …] or a plain type."""
    if hasattr(kind, "__dataclass_fields__"):
        if not isinstance(value, Mapping):
            raise _damaged(where, "an object", value)
        hints = get_type_hints(kind)
        missing = [f.name for f in fields(kind) if f.name not in value]
        if missing:
            raise _damaged(where, f"a field {missing[0]!r}", None)
        return kind(
            **{
                f.name: _typed(value[f.name], hints[f.name], f"{where}: {f.name}")
                for f in fields(kind)
            }
        )
    origin = getattr(kind, "__origin__", None)
    if origin is list:
        if not isinstance(value, list):
            raise _damaged(where, "a list", value)
        return [_typed(item, kind.__args__[0], where) for item in value]
    if origin is dict:
        if not isinstance(value, dict):
            raise _damaged(where, "an object", value)
        return {name: _typed(item, kind.__args__[1], where) for name, item in value.items()}
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if type(value) is not kind:
        raise _damaged(where, kind.__name__, value)
    return value


def _damaged(where: str, wanted: str, found: object) -> Unfit:
    return Unfit(
        f"{where}: expected {wanted}, found {_shown(found)}", hint="the snapshot is damaged"
    )


def _shown(value: object) -> str:
    # Only its kind if there is more in it: it may be nested too deeply to be shown.
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else f"{value!r:.80}"
