"""What a container's annotations ask for, agreed upon at Create, and what that makes of its spec:
the control directory, which is one mount and two variables, what gpu/spec.py is for, and the GPU
memory library, which is one mount and one variable more (gpu/preload.py).

What is written there, and read, is worker/control.py's. The directory is a small file system of
its own, so that a container cannot fill the node's /run with it. A pod that mounts a volume of its
own at that place (Dynamo's emptyDir) has its control directory there.
"""

from __future__ import annotations

import os

from shim import log
from shim.annotations import (
    CONTAINER_TYPE,
    ON_FAILURE,
    PREFIX,
    SNAPSHOT,
    is_annotated,
    unknown,
    value,
)
from shim.bundle import annotations_of
from shim.conduct import check
from shim.errors import FailedPrecondition, ThawError
from shim.mount import mount_all
from shim.proto.task_pb import Mount
from shim.task.source import refused
from shim.worker.control import VARIABLES, find, mount_of, place_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from shim.config import Config
    from shim.worker.control import Control

FOLDER = "control"  # in the container's place under the state folder
_OPTIONS = ["nosuid", "nodev", "noexec"]
_LIMITS = ["mode=0777", "size=1m", "nr_inodes=64"]


def agree(container: str, spec: dict[str, Any], folder: str, config: Config) -> dict[str, str]:
    """Read all that is asked of us, and prepare for it; answers the annotations that count.

    If one of them cannot be read, or the container can have no control directory, none of ours
    counts, and it boots like any other: unless it shall fail then, which raises the reason. Those
    that do not count are not in `spec` any longer.
    """
    asked = annotations_of(spec)
    notes = _heeded(container, spec, folder, config)
    # Before a name is derived, and the same whether it boots cold or is restored: both compare.
    gpus = has_gpus(spec, notes, config)
    if gpus or is_annotated(notes):
        from shim.gpu.spec import make_checkpointable

        make_checkpointable(spec, gpus=gpus)
    # Who wants to be without the library is, even where another annotation cannot be read.
    provide_library(container, spec, asked, config)
    return notes


def provide_library(
    container: str, spec: dict[str, Any], notes: Mapping[str, str], config: Config
) -> None:
    """Give a container with GPUs this Thaw's version of the GPU memory library, whatever it had.

    Without one it boots as well, and the driver moves its GPU memory: no reason to fail.
    """
    if not mentions_gpus(spec):
        return
    from shim.gpu import preload
    from shim.gpu.given import may_be_several

    preload.take(spec)
    if not has_gpus(spec, notes, config) or not preload.is_wanted(notes, config):
        return
    several = may_be_several(spec, config.text("BinaryName"))
    if not preload.is_wanted(notes, config, several=several):
        log.info("no GPU memory library", container=container, because=preload.SEVERAL)
        return
    if not preload.is_possible(spec):
        because = f"it has no /dev of its own, or something at {preload.PLACE}"
        log.warning("no GPU memory library", container=container, because=because)
        return
    try:
        preload.give(spec, preload.keep(config.text("gpu.preloaded")))
    except (ThawError, OSError) as error:
        log.warning("no GPU memory library", container=container, because=error)


def has_gpus(spec: dict[str, Any], notes: Mapping[str, str], config: Config) -> bool:
    """Who has any can be meant by `thaw checkpoint` without an annotation; sandboxes never are."""
    if notes.get(CONTAINER_TYPE) == "sandbox":
        return False
    if not mentions_gpus(spec):
        return False
    from shim.gpu import given

    return given.has_gpus(spec, config.text("BinaryName"))


def mentions_gpus(spec: dict[str, Any]) -> bool:
    """Whether there is anything for has_gpus(), whose import costs a shim 0.2 MiB for good.

    A node may be called anything, but its number is NVIDIA's; all other forms have the name in it.
    """
    said = repr(spec)
    return "nvidia" in said.lower() or "'major': 195" in said


def _heeded(container: str, spec: dict[str, Any], folder: str, config: Config) -> dict[str, str]:
    notes = annotations_of(spec)
    if not is_annotated(notes):
        return notes
    for key in unknown(notes):
        log.warning("unknown annotation", container=container, key=key)
    try:
        check(notes)
        _prepare(spec, folder)
    except ThawError as error:
        must = value(notes, ON_FAILURE) == "fail"
        refused(config, container, value(notes, SNAPSHOT) or "", notes, error, cold=not must)
        if must:
            raise
        notes = {key: said for key, said in notes.items() if not key.startswith(PREFIX)}
        spec["annotations"] = notes
    return notes


def _prepare(spec: dict[str, Any], folder: str) -> None:
    """As `prepare`; if that fails, the spec is as it was."""
    changed = {**spec, "process": {**(spec.get("process") or {})}}
    try:
        prepare(changed, folder)
    except OSError as error:
        raise FailedPrecondition(f"no control directory: {error}") from error
    spec.update(changed)


def prepare(spec: dict[str, Any], folder: str) -> Control | None:
    """Make the control directory of a container that is to be created, and put it into `spec`.

    `folder` is the container's under the state folder: removing that removes all of it. None if a
    mount of the pod's own is in the way. Raises InvalidArgument, FailedPrecondition, OSError.
    """
    path = f"{folder}/{FOLDER}"
    place = place_of(spec)
    if mount_of(spec, place) is None:
        _make(path)
    inject(spec, path)
    control = find(spec)
    if control is None:
        log.warning("no control directory: a mount is in the way", place=place)
        return None
    control.clear()
    return control


def inject(spec: dict[str, Any], source: str) -> None:
    """Add the mount, unless there is one at that place, and the variables. Done twice, as once."""
    place = place_of(spec)
    if mount_of(spec, place) is None:
        options = ["rbind", "rw", *_OPTIONS]
        mount = {"destination": place, "type": "bind", "source": source, "options": options}
        spec["mounts"] = [*(spec.get("mounts") or []), mount]
    process = spec.setdefault("process", {})
    env = [entry for entry in process.get("env") or [] if entry.partition("=")[0] not in VARIABLES]
    process["env"] = env + [f"{name}={place}" for name in VARIABLES]


def withdraw(spec: dict[str, Any], folder: str) -> bool:
    """Take the mount out again, if it is ours: for a snapshot whose container had none.

    Mounts come back as CRIU dumped them, and none can be added. Whether there was one.
    """
    mounts = spec.get("mounts") or []
    spec["mounts"] = [mount for mount in mounts if mount.get("source") != f"{folder}/{FOLDER}"]
    return len(spec["mounts"]) < len(mounts)


def _make(path: str) -> None:
    os.makedirs(path, mode=0o700, exist_ok=True)
    mount_all([Mount(type="tmpfs", source="thaw", options=[*_OPTIONS, *_LIMITS])], path)
