"""What a pod may ask of Thaw: one table, from which the parser and the README's section come.

Annotations are written by whoever may create pods, so every value is checked here and none of
them is ever a path. On a node they arrive in config.json if containerd's runtime configuration
has `pod_annotations = ["thaw.dev/*"]`, or directly with `ctr run --annotation`.
"""

from __future__ import annotations

from shim.errors import BadAnnotation, BadName
from shim.reference import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "thaw.dev/"
SNAPSHOT = PREFIX + "snapshot"
ON_FAILURE = PREFIX + "on-failure"
PULL = PREFIX + "pull"
READY = PREFIX + "ready"

CONTAINER_NAME = "io.kubernetes.cri.container-name"
CONTAINER_TYPE = "io.kubernetes.cri.container-type"
IMAGE_NAME = "io.kubernetes.cri.image-name"
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
POD_NAME = "io.kubernetes.cri.sandbox-name"
POD_NAMESPACE = "io.kubernetes.cri.sandbox-namespace"
POD_UID = "io.kubernetes.cri.sandbox-uid"


class Row:
    """One annotation."""

    __slots__ = ("default", "key", "sentence", "type")

    def __init__(self, key: str, type: str, default: str, sentence: str) -> None:
        self.key = key
        self.type = type
        self.default = default
        self.sentence = sentence


TABLE = (
    Row(
        SNAPSHOT,
        "REFERENCE or auto",
        "",
        "Restore the container whose name equals the snapshot's from this snapshot. `auto`: from "
        "the one made of an equal container before, or make it once this one is ready.",
    ),
    Row(
        SNAPSHOT + ".CONTAINER",
        "REFERENCE or auto",
        "",
        "Restore the container named CONTAINER from this snapshot, whatever its own was called.",
    ),
    Row(
        ON_FAILURE,
        "cold-start or fail",
        "cold-start",
        "What happens when the snapshot cannot be restored.",
    ),
    Row(
        PULL,
        "wait, background or never",
        "background",
        "What happens when the node has not got REGISTRY/REPOSITORY:TAG: pull it first, pull it "
        "while this container boots cold, or neither.",
    ),
    Row(
        READY,
        "PROBE",
        "",
        "What says that the worker is warm, for `auto`: file:PATH, tcp:PORT, http:PORT/PATH or "
        "exec:COMMAND.",
    ),
)

_READ_AHEAD = 4  # snapshots of one pod
_PULLS = ("wait", "background", "never")


class Wish:
    """What the annotations ask for one container; `name` is as written, not yet checked.

    `outright` says that the container was named in the key, so that the snapshot's own container
    name does not matter.
    """

    __slots__ = ("name", "outright")

    def __init__(self, name: str, outright: bool) -> None:
        self.name = name
        self.outright = outright


def wish(annotations: Mapping[str, str]) -> Wish | None:
    """Which snapshot this container shall be restored from, if any. Sandboxes never are."""
    if annotations.get(CONTAINER_TYPE) == "sandbox":
        return None
    container = annotations.get(CONTAINER_NAME)
    if container is not None:
        name = annotations.get(f"{SNAPSHOT}.{container}")
        if name is not None:
            return Wish(name, True)
    name = annotations.get(SNAPSHOT)
    # Without CRI there are no container names: the annotated container is the one that is meant.
    return None if name is None else Wish(name, container is None)


def named_snapshots(annotations: Mapping[str, str]) -> list[str]:
    """The snapshots that a pod's containers will ask for, if this is its sandbox: good names only.

    No more than a few: each is read ahead by a process of its own, and a pod may name any number.
    """
    if annotations.get(CONTAINER_TYPE) != "sandbox":
        return []
    names: list[str] = []
    for key, name in sorted(annotations.items()):
        if (key == SNAPSHOT or key.startswith(SNAPSHOT + ".")) and name not in names:
            try:
                reference = parse(name)
            except BadName:
                continue  # its container will be told
            if not reference.auto:  # depends on what the container will be
                names.append(name)
    return names[:_READ_AHEAD]


def fail_instead_of_cold_start(annotations: Mapping[str, str]) -> bool:
    """Whether a failed restore shall fail the container. Raises BadAnnotation for other words."""
    value = annotations.get(ON_FAILURE, "cold-start")
    if value not in ("cold-start", "fail"):
        raise BadAnnotation(f"{ON_FAILURE}: {value[:80]!r}", hint="the value is cold-start or fail")
    return value == "fail"


def pull_first(annotations: Mapping[str, str]) -> str:
    """What to do about an artifact that is not here: wait, background or never."""
    value = annotations.get(PULL, "background")
    if value not in _PULLS:
        raise BadAnnotation(
            f"{PULL}: {value[:80]!r}", hint="the value is wait, background or never"
        )
    return value


class Probe:
    """What says that a worker is warm: `kind` is file, tcp, http or exec.

    `target` is a path in the container, a port, PORT/PATH or a command line for /bin/sh.
    """

    __slots__ = ("kind", "target")

    def __init__(self, kind: str, target: str) -> None:
        self.kind = kind
        self.target = target


def probe(annotations: Mapping[str, str], key: str = READY) -> Probe | None:
    """The probe that an annotation names, if it is there. Raises BadAnnotation."""
    value = annotations.get(key)
    if value is None:
        return None
    kind, colon, target = value.partition(":")
    port, _, _ = target.partition("/")
    good = {
        "file": target.startswith("/") and "\0" not in target,
        "tcp": _is_port(target),
        "http": _is_port(port) and target.isascii() and target.isprintable() and " " not in target,
        "exec": bool(target.strip()) and "\0" not in target,
    }
    if not colon or not good.get(kind, False):
        raise BadAnnotation(
            f"{key}: {value[:80]!r}",
            hint="the value is file:/PATH, tcp:PORT, http:PORT/PATH or exec:COMMAND",
        )
    return Probe(kind, target)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536
