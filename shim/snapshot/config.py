"""The config document of a snapshot: what it was made from, what with, and what it needs.

It is read as untrusted input: every field is checked for its type, and every name of a file for its
form, before use. A checksum covers all of it, so that a flipped byte is not taken for a change.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, field, fields
from functools import cache
from typing import Any, get_type_hints

from shim._native import lib
from shim.errors import Damaged, Unfit
from shim.gpu.preload import is_digest
from shim.lean.values import Value
from shim.snapshot.cuda import CudaState, add_regions, check
from shim.timeline import Span

FORMAT = 4  # 2 knew nothing of GPUs and devices, 3 had all their memory from the driver
READABLE = (2, 3, 4)
LARGEST = 8 << 20  # bytes of a document
DAMAGED = "the snapshot is damaged: remove it with `thaw rm` and make it again"

# The files of a snapshot, relative to its folder; there are no others (store.py draws the tree).
# At most 100 characters: they are names in a plain tar, too (artifact.py).
SKELETON_FILE = re.compile(r"(?:criu|index)/[A-Za-z0-9][A-Za-z0-9._-]{0,92}", re.ASCII)
DIFFERENCE_PART = re.compile(r"rootfs\.tar\.[0-9]{4}", re.ASCII)
VOLUME_PART = re.compile(r"volumes/(?:0|[1-9][0-9]{0,3})\.tar\.[0-9]{4}", re.ASCII)
# A piece of pages-N.img, or the whole file in a checkpoint that containerd asked for; a piece of
# GPU memory.
PIECE_NAME = re.compile(
    r"pages-[1-9][0-9]{0,9}\.img(?:\.[0-9]{4})?|gpu-[1-9][0-9]{0,9}\.img\.[0-9]{4}", re.ASCII
)


class SpecMount(Value):
    """A mount of the OCI spec: what a restore cannot change. Options are sorted."""

    destination: str
    type: str
    options: list[str]


class MountPoint(Value):
    """A mount as the kernel shows it in the container's mountinfo. Options are sorted.

    `propagation` is "private", or the words "shared" and "slave" that apply.
    """

    path: str
    type: str
    options: list[str]
    propagation: str


class DeviceNode(Value):
    """A device node that a spec gives a container. A FIFO has no numbers: 0."""

    path: str
    type: str  # "c", "b", or "p" for a FIFO
    major: int
    minor: int
    mode: int  # the bits of rights
    uid: int
    gid: int


class Origin(Value):
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
    env: list[str] = field(default_factory=list)  # names, sorted: values are secrets
    namespace: str = ""  # Kubernetes'; empty without CRI
    service_account: str = ""  # as its token says, which is not verified: for people
    # "INTERFACE ADDRESS" each, in the kernel's order: what the snapshot's sockets are bound to.
    addresses: list[str] = field(default_factory=list)
    devices: list[DeviceNode] = field(default_factory=list)  # by path; see nodes.py
    library: str = ""  # SHA-256 of the GPU memory library that it has; empty: none


class Gpu(Value):
    """GPUs of one kind."""

    model: str
    memory: int  # bytes of one
    driver: str
    count: int


class Host(Value):
    """The machine that dumps or shall restore."""

    architecture: str
    kernel: str
    criu: str
    cpu_features: list[str]  # sorted
    kernel_features: list[str] = field(default_factory=list)  # sorted; see host.py
    cgroup: int = 0  # the version of its cgroups, 1 or 2
    gpus: list[Gpu] = field(default_factory=list)


class Maker(Value):
    """Who made it, for people."""

    version: str = ""  # of Thaw
    node: str = ""  # host name
    by: str = ""  # "thaw checkpoint", "containerd", "annotation" or "auto"


class Connections(Value):
    """Established TCP connections at the dump: both ends inside the container, or one outside."""

    inside: int
    outside: int


class File(Value):
    """What a file must be: bytes, and their CRC-32C."""

    size: int
    crc32c: int


class SnapshotConfig(Value):
    """The whole document. Times are RFC 3339 in UTC, sizes bytes on disk, durations seconds."""

    format: int
    created: str
    origin: Origin
    host: Host
    mounts: list[MountPoint]  # as seen inside, sorted by path
    volumes: list[str]  # destinations whose contents are in volumes/0.tar, volumes/1.tar, …
    difference: bool  # rootfs.tar holds the upper directory
    connections: Connections
    files: dict[str, File] = field(default_factory=dict)  # all but config, pages and log
    pages: dict[str, int] = field(default_factory=dict)  # piece → bytes; see index.py for sums
    sizes: dict[str, int] = field(default_factory=dict)
    maker: Maker = field(default_factory=Maker)
    spans: list[Span] = field(default_factory=list)
    gpu: CudaState = field(default_factory=CudaState)
    # "restored" beside its original before it was published, or why not; "": nobody wanted that.
    verified: str = ""

    def to_json(self) -> str:
        """The document as it is written, with its checksum."""
        document = asdict(self)
        return _written({**document, "checksum": _checksum(document)})

    @classmethod
    def from_json(cls, text: bytes | str, path: str) -> SnapshotConfig:
        """Read a document. Raises Unfit naming `path`: Damaged unless it is of another format."""
        document = _parsed(text, path)
        if document.get("format") not in READABLE or type(document["format"]) is not int:
            raise _other_format(path, document.get("format"))
        as_written = text if isinstance(text, str) else text.decode()
        checksum = document.pop("checksum", None)
        try:
            good = type(checksum) is int and checksum == _checksum(document)
            good = good and as_written == _written({**document, "checksum": checksum})
        except (RecursionError, ValueError) as error:  # a number without end is a ValueError
            raise Damaged(f"{path}: nested too deeply, or no number", hint=DAMAGED) from error
        if not good:
            raise Damaged(f"{path}: not what was written (its checksum is wrong)", hint=DAMAGED)
        if document["format"] == 2:
            document |= {"gpu": asdict(CudaState()), "verified": ""}
            if isinstance(document.get("origin"), dict):
                document["origin"]["devices"] = []
        if document["format"] == 3:
            add_regions(document)
        if document["format"] < 4 and isinstance(document.get("origin"), dict):
            document["origin"]["library"] = ""
        config: SnapshotConfig = _typed(document, cls, path)
        _check_names(config, path)
        try:
            check(config.gpu)
        except ValueError as error:
            raise Damaged(f"{path}: gpu: {error}", hint=DAMAGED) from error
        if config.origin.library and not is_digest(config.origin.library):
            raise Damaged(f"{path}: origin: library: no digest", hint=DAMAGED)
        return config


def canonical(document: object) -> bytes:
    """The JSON of a document of ours without a choice: sorted, without space, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse_json(text: bytes | str, path: str) -> Any:
    """Some JSON from outside. Raises Damaged naming `path`, whatever the bytes are."""
    try:
        return json.loads(
            text if isinstance(text, str) else text.decode(), parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else f"{error!s:.200}"
        raise Damaged(f"{path}: {reason}", hint=DAMAGED) from error


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _parsed(text: bytes | str, path: str) -> dict[str, Any]:
    document = parse_json(text, path)
    if not isinstance(document, dict):
        raise Damaged(f"{path}: not a JSON object", hint=DAMAGED)
    return document


def _written(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _checksum(document: Mapping[str, Any]) -> int:
    data = canonical(document)
    return lib.thaw_crc32c(0, data, len(data))


def _other_format(path: str, found: object) -> Unfit:
    newer = type(found) is int and found > FORMAT
    maker = "a newer version of Thaw" if newer else "another version of Thaw"
    return Unfit(
        f"{path}: format {_shown(found)} is not {FORMAT}",
        hint=f"it was made by {maker}: use that one, or make the snapshot again",
    )


def _check_names(config: SnapshotConfig, path: str) -> None:
    """Names of files lead nowhere but into the snapshot's folder."""
    kinds = (SKELETON_FILE, DIFFERENCE_PART, VOLUME_PART)
    for name, file in config.files.items():
        if not any(kind.fullmatch(name) for kind in kinds):
            raise Damaged(f"{path}: files: bad name {_shown(name)}", hint=DAMAGED)
        if file.size < 0 or not 0 <= file.crc32c < 1 << 32:
            raise Damaged(f"{path}: files: bad size or checksum of {name}", hint=DAMAGED)
    for name, size in config.pages.items():
        if not PIECE_NAME.fullmatch(name) or size < 0:
            raise Damaged(f"{path}: pages: bad name or size {_shown(name)}", hint=DAMAGED)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _typed(value: Any, kind: Any, where: str) -> Any:
    """`value` as a `kind`: a dataclass, list[…], dict[str, …] or a plain type."""
    if hasattr(kind, "__dataclass_fields__"):
        return _object(value, kind, where)
    origin = getattr(kind, "__origin__", None)
    if origin is list:
        if not isinstance(value, list):
            raise _damaged(where, "a list", value)
        return [_typed(item, kind.__args__[0], where) for item in value]
    if origin is dict:
        if not isinstance(value, dict):
            raise _damaged(where, "an object", value)
        inner = kind.__args__[1]
        return {
            _plain(name, str, where): _typed(item, inner, where) for name, item in value.items()
        }
    return _plain(value, kind, where)


def _object(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _damaged(where, "an object", value)
    hints = _hints(kind)
    missing = [f.name for f in fields(kind) if f.name not in value]
    if missing:
        raise _damaged(where, f"a field {missing[0]!r}", None)
    return kind(
        **{f.name: _typed(value[f.name], hints[f.name], f"{where}: {f.name}") for f in fields(kind)}
    )


def _plain(value: Any, kind: Any, where: str) -> Any:
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    good: Callable[[Any], bool] | None = _GOOD.get(kind)
    if type(value) is not kind or (good is not None and not good(value)):
        raise _damaged(where, kind.__name__, value)
    return value


def _is_text(value: str) -> bool:
    """JSON can spell what no encoding can: half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_GOOD: dict[type, Callable[[Any], bool]] = {
    str: _is_text,
    int: lambda value: -(1 << 63) <= value < 1 << 63,
    float: math.isfinite,
}


def _damaged(where: str, wanted: str, found: object) -> Damaged:
    return Damaged(f"{where}: expected {wanted}, found {_shown(found)}", hint=DAMAGED)


def _shown(value: object) -> str:
    # Only its kind if there is more in it: it may be nested too deeply to be shown.
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else f"{value!a:.80}"
