"""What a pod may ask of Thaw: one table, from which the parser and the README's section come.

Annotations are written by whoever may create pods, so every value is checked here and none of
them is ever a path. On a node they arrive in config.json if containerd's runtime configuration
has `pod_annotations = ["thaw.dev/*"]`, or directly with `ctr run --annotation`.
"""

from __future__ import annotations

from shim.errors import BadAnnotation, BadName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "thaw.dev/"
SNAPSHOT = PREFIX + "snapshot"
ON_FAILURE = PREFIX + "on-failure"

CONTAINER_NAME = "io.kubernetes.cri.container-name"
CONTAINER_TYPE = "io.kubernetes.cri.container-type"
IMAGE_NAME = "io.kubernetes.cri.image-name"
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"


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
        "NAME",
        "",
        "Restore the container whose name equals the snapshot's from this snapshot.",
    ),
    Row(
        SNAPSHOT + ".CONTAINER",
        "NAME",
        "",
        "Restore the container named CONTAINER from this snapshot, whatever its own was called.",
    ),
    Row(
        ON_FAILURE,
        "cold-start or fail",
        "cold-start",
        "What happens when the snapshot cannot be restored.",
    ),
)

NAME_LENGTH = 63
_NAME_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_NAME_REST = _NAME_FIRST | frozenset("._-")
_RESERVED = ("auto",)
_READ_AHEAD = 4  # snapshots of one pod


def check_name(name: str) -> str:
    """`name` itself, if it can name a snapshot: [a-z0-9][a-z0-9._-]{0,62}, and not reserved.

    Raises BadName otherwise. `/`, `@` and `:` belong to references, which do not exist yet.
    """
    hint = "a name is [a-z0-9][a-z0-9._-]{0,62}"
    if any(c in name for c in "/@:"):
        raise BadName(f"snapshot {name!r} is a reference, not a name", hint=hint)
    if name in _RESERVED:
        raise BadName(f"snapshot name {name!r} is reserved", hint="choose another name")
    good = 0 < len(name) <= NAME_LENGTH and name[0] in _NAME_FIRST and _NAME_REST.issuperset(name)
    if not good:
        raise BadName(f"bad snapshot name {name[:80]!r}", hint=hint)
    return name


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
                names.append(check_name(name))
            except BadName:
                continue  # its container will be told
    return names[:_READ_AHEAD]


def fail_instead_of_cold_start(annotations: Mapping[str, str]) -> bool:
    """Whether a failed restore shall fail the container. Raises BadAnnotation for other words."""
    value = annotations.get(ON_FAILURE, "cold-start")
    if value not in ("cold-start", "fail"):
        raise BadAnnotation(f"{ON_FAILURE}: {value[:80]!r}", hint="the value is cold-start or fail")
    return value == "fail"
