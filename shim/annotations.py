"""What a pod may ask of Thaw: one table, from which the parser and the README's section come.

Annotations are written by whoever may create pods, so every value is checked here and none of
them is ever a path. On a node they arrive in config.json if containerd's runtime configuration
has `pod_annotations = ["thaw.dev/*"]`, or directly with `ctr run --annotation`.

Every key may be followed by `.CONTAINER`: that one is for the container of that name alone, and
goes before the plain one. What the annotations say of the worker itself is read in conduct.py.
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
CHECKPOINT = PREFIX + "checkpoint"
AFTER_CHECKPOINT = PREFIX + "after-checkpoint"
QUIESCE = PREFIX + "quiesce"
RESUME = PREFIX + "resume"
QUIESCE_TIMEOUT = PREFIX + "quiesce-timeout"
RESUME_TIMEOUT = PREFIX + "resume-timeout"
CANARY = PREFIX + "canary"
CANARY_BODY = PREFIX + "canary-body"
CANARY_EXPECT = PREFIX + "canary-expect"
CANARY_TIMEOUT = PREFIX + "canary-timeout"
REGISTER = PREFIX + "register"
REGISTER_TIMEOUT = PREFIX + "register-timeout"
REGISTER_FAILURE = PREFIX + "register-failure"
GPU_MEMORY = PREFIX + "gpu-memory"

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
        "contract",
        "What says that the worker is warm: contract (it writes `ready-for-snapshot`), file:PATH, "
        "tcp:PORT, http:PORT/PATH or exec:COMMAND.",
    ),
    Row(
        CHECKPOINT,
        "NAME or auto",
        "",
        "Make this snapshot of the container once it is ready, if there is none of that name.",
    ),
    Row(
        AFTER_CHECKPOINT,
        "continue or exit",
        "continue",
        "What the container does once that snapshot is made.",
    ),
    Row(
        QUIESCE,
        "ACTION",
        "",
        "What is done before a snapshot: http:PORT/PATH (a POST) or exec:COMMAND.",
    ),
    Row(
        RESUME,
        "ACTION",
        "",
        "What is done after a restore, and after a snapshot when the container goes on.",
    ),
    Row(QUIESCE_TIMEOUT, "seconds", "60", "How long `quiesce` may take."),
    Row(RESUME_TIMEOUT, "seconds", "30", "How long `resume` may take."),
    Row(
        CANARY,
        "ACTION",
        "",
        "What a restored worker must answer rightly before it is seen: http:PORT/PATH (a GET) or "
        "exec:COMMAND.",
    ),
    Row(CANARY_BODY, "text", "", "The request's body, as application/json; it is a POST then."),
    Row(
        CANARY_EXPECT,
        "status=N sha256=HEX match=REGEX",
        "status=200",
        "What the answer must be: any of these words, `match`, which goes on to the end, as the "
        "last. A command's status is 0 if nothing is said.",
    ),
    Row(CANARY_TIMEOUT, "seconds", "10", "How long the canary may take, all in all."),
    Row(
        REGISTER,
        "BACKEND",
        "none",
        "Where the worker is registered once it is seen: http:PORT/PATH or http://HOST/… (POST, "
        "in the end DELETE), etcd:HOST:PORT/KEY, exec:COMMAND (`$1`: register or deregister) or "
        "none.",
    ),
    Row(REGISTER_TIMEOUT, "seconds", "10", "How long one attempt to register may take."),
    Row(
        REGISTER_FAILURE,
        "retry or fail",
        "retry",
        "What happens when it cannot be registered: try again, for as long as it takes, or fail "
        "the container.",
    ),
    Row(
        GPU_MEMORY,
        "library or driver",
        "library",
        "What moves GPU memory at a snapshot and at a restore: Thaw's library, loaded into the "
        "container's programs, with the driver for what it cannot move, or the driver alone. A "
        "container with several GPUs has the library only if this says so.",
    ),
)

_READ_AHEAD = 4  # snapshots of one pod


class Wish:
    """What the annotations ask for one container; `name` is what `key` says, not yet checked.

    `outright` says that the container was named in the key, so that the snapshot's own container
    name does not matter.
    """

    __slots__ = ("key", "name", "outright")

    def __init__(self, key: str, name: str, outright: bool) -> None:
        self.key = key
        self.name = name
        self.outright = outright


def wish(annotations: Mapping[str, str]) -> Wish | None:
    """Which snapshot this container shall be restored from, if any. Sandboxes never are."""
    if annotations.get(CONTAINER_TYPE) == "sandbox":
        return None
    container = annotations.get(CONTAINER_NAME)
    if container is not None:
        key = f"{SNAPSHOT}.{container}"
        name = annotations.get(key)
        if name is not None:
            return Wish(key, name, True)
    name = annotations.get(SNAPSHOT)
    # Without CRI there are no container names: the annotated container is the one that is meant.
    return None if name is None else Wish(SNAPSHOT, name, container is None)


def named_snapshots(annotations: Mapping[str, str]) -> list[str]:
    """The snapshots that a pod's containers will ask for, if this is its sandbox: good names only.

    No more than a few: each is read ahead by a process of its own, and a pod may name any number.
    What `auto` stands for is not known yet, but its engine can be there.
    """
    if annotations.get(CONTAINER_TYPE) != "sandbox":
        return []
    names: list[str] = []
    for key, name in sorted(annotations.items()):
        if (key == SNAPSHOT or key.startswith(SNAPSHOT + ".")) and name not in names:
            try:
                parse(name)
            except BadName:
                continue  # its container will be told
            names.append(name)
    return names[:_READ_AHEAD]


def value(annotations: Mapping[str, str], key: str) -> str | None:
    """What an annotation says to this container, by name or to all; None if it is not there."""
    container = annotations.get(CONTAINER_NAME)
    if container is not None:
        own = annotations.get(f"{key}.{container}")
        if own is not None:
            return own
    return annotations.get(key)


def for_everyone(annotations: Mapping[str, str]) -> list[str]:
    """Plain keys by which a container does what another one of its pod is meant to do alone.

    All containers with a plain `register` are registered as the same worker, and with a plain
    `checkpoint` whichever is ready first has the name. Where a key names another container, one of
    several is meant.
    """
    container = annotations.get(CONTAINER_NAME)
    others = [key for key in annotations if key.startswith(f"{SNAPSHOT}.")]
    if container is None or not any(key != f"{SNAPSHOT}.{container}" for key in others):
        return []
    plain = [key for key in (CHECKPOINT, REGISTER) if key in annotations]
    return [key for key in plain if f"{key}.{container}" not in annotations]


def is_annotated(annotations: Mapping[str, str]) -> bool:
    """Whether anything is asked of Thaw for this container. Sandboxes are asked for nothing."""
    if annotations.get(CONTAINER_TYPE) == "sandbox":
        return False
    return any(value(annotations, row.key) is not None for row in TABLE)


def unknown(annotations: Mapping[str, str]) -> list[str]:
    """Keys of ours that are in no row: slips of the pen, or a newer Thaw's."""
    rows = [row.key for row in TABLE if not row.key.endswith(".CONTAINER")]
    return sorted(
        key
        for key in annotations
        if key.startswith(PREFIX)
        and key not in rows
        and not any(key.startswith(f"{row}.") for row in rows)
    )


def refuse(key: str, found: str, allowed: str) -> BadAnnotation:
    """The error that names the key, the value (its beginning) and what is allowed."""
    return BadAnnotation(f"{key}: {found[:80]!r}", hint=f"the value is {allowed}")


def one_of(annotations: Mapping[str, str], key: str, words: tuple[str, ...]) -> str:
    """The word that an annotation says; the first if it is not there. Raises BadAnnotation."""
    found = value(annotations, key)
    if found is None:
        return words[0]
    if found not in words:
        allowed = f"{', '.join(words[:-1])} or {words[-1]}"
        raise refuse(key, found, allowed)
    return found


def fail_instead_of_cold_start(annotations: Mapping[str, str]) -> bool:
    """Whether a failed restore shall fail the container. Raises BadAnnotation for other words."""
    return one_of(annotations, ON_FAILURE, ("cold-start", "fail")) == "fail"


def pull_first(annotations: Mapping[str, str]) -> str:
    """What to do about an artifact that is not here: wait, background or never."""
    return one_of(annotations, PULL, ("background", "wait", "never"))


def gpu_memory(annotations: Mapping[str, str], configured: str, several: bool = False) -> str:
    """What moves GPU memory: library or driver. Raises BadAnnotation.

    `configured` is the operator's `gpu.memory`: a pod can go without the library, and cannot have
    it where that says driver. `several`: the container has several GPUs, and the library only if it
    asks for it: programs that share memory between GPUs by CUDA's IPC would not start with it.
    """
    words = ("driver", "library") if several else ("library", "driver")
    said = one_of(annotations, GPU_MEMORY, words)
    return "driver" if "driver" in (said, configured) else "library"


class Probe:
    """What says that a worker is warm: `kind` is contract, file, tcp, http or exec.

    `target` is a path in the container, a port, PORT/PATH or a command line for /bin/sh.
    """

    __slots__ = ("kind", "target")

    def __init__(self, kind: str, target: str) -> None:
        self.kind = kind
        self.target = target


def probe(annotations: Mapping[str, str], key: str = READY) -> Probe | None:
    """The probe that an annotation names, if it is there. Raises BadAnnotation."""
    found = value(annotations, key)
    if found is None:
        return None
    if found == "contract":
        return Probe("contract", "")
    kind, colon, target = found.partition(":")
    good = {
        "file": target.startswith("/") and "\0" not in target,
        "tcp": is_port(target),
        "http": is_local_http(target),
        "exec": is_command(target),
    }
    if not colon or not good.get(kind, False):
        raise refuse(key, found, "contract, file:/PATH, tcp:PORT, http:PORT/PATH or exec:COMMAND")
    return Probe(kind, target)


def is_port(text: str) -> bool:
    """Whether it is a number from 1 to 65535."""
    return text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536


def is_local_http(text: str) -> bool:
    """Whether it is PORT or PORT/PATH, with nothing in it that would not pass in a request."""
    return is_port(text.partition("/")[0]) and is_plain(text)


def is_plain(text: str) -> bool:
    """Whether it is visible ASCII alone: what a request line takes as it is."""
    return text.isascii() and text.isprintable() and " " not in text


def is_command(text: str) -> bool:
    """Whether it is something for /bin/sh -c."""
    return bool(text.strip()) and "\0" not in text
