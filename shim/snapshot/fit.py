"""Whether a snapshot can run here: pure functions over what was, what is asked, and the machine.

Nothing that a snapshot brings may exceed what the pod's own spec allows, and nothing that CRIU
takes from the image (arguments, user, mount flags) may differ from it: a restored worker that is
subtly another one is worse than a cold boot.

Reasons go into logs and to whoever asks. What can be a secret (arguments, values of a mount's
options) is not told, only that it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim.config import Config
from shim.errors import OtherContainer, Unfit
from shim.gpu import preload
from shim.snapshot.config import Host, Origin, SnapshotConfig, SpecMount

if TYPE_CHECKING:
    from shim.gpu.nvml import Gpu

LIBRARY_HINT = "make the snapshot anew; see thaw.dev/gpu-memory, gpu.memory and gpu.preloaded"
_SHOWN = frozenset(("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge"))


def check(config: SnapshotConfig, live: Origin, host: Host, *, outright: bool) -> None:
    """Raise Unfit with the first reason found, if any.

    `outright`: the container was named by the annotation's key (or there are no names), so the
    snapshot's own container name does not count.
    """
    if not outright and config.origin.container != live.container:
        raise OtherContainer(
            f"the snapshot is of container {config.origin.container!r}, not {live.container!r}",
            hint=f"thaw.dev/snapshot.{live.container} names one outright",
        )
    for reason in reasons(config, live, host):
        raise Unfit(reason, hint="make a snapshot of this pod, or change the pod")


def reasons(config: SnapshotConfig, live: Origin, host: Host) -> Iterator[str]:
    """Every reason why it cannot run here, but for the container's name."""
    rules: tuple[Callable[[SnapshotConfig, Origin, Host], Iterator[str]], ...] = (
        _machine,
        _isolation,
        _image,
        _process,
        _privileges,
        _mounts,
    )
    for rule in rules:
        yield from rule(config, live, host)


def _machine(config: SnapshotConfig, _live: Origin, host: Host) -> Iterator[str]:
    if config.host.architecture != host.architecture:
        yield f"made on {config.host.architecture}, this is {host.architecture}"
    missing = sorted(set(config.host.cpu_features) - set(host.cpu_features))
    if missing:
        yield f"this CPU lacks {' '.join(missing[:8])}"
    missing = sorted(set(config.host.kernel_features) - set(host.kernel_features))
    if missing:
        yield f"this kernel lacks {' '.join(missing[:8])}"
    if config.host.cgroup != host.cgroup:
        yield f"made on cgroup v{config.host.cgroup}, this machine has v{host.cgroup}"


def gpu_reasons(
    config: SnapshotConfig,
    spec: Mapping[str, Any] | None,
    runtime: str = "",
    node: Sequence[Gpu] | None = None,
) -> Iterator[str]:
    """Every reason why the GPUs of a container with this spec are none for the snapshot's worker.

    `runtime` is what creates it (BinaryName). Without a spec: those of this machine, which are
    `node`, or else asked for if it was on any.
    """
    if not config.gpu.processes:
        return
    from shim.gpu import rules
    from shim.gpu.given import given
    from shim.gpu.nvml import gpus

    here = gpus() if node is None else node
    here = here if spec is None else given(spec, here, runtime)
    every = config.gpu.needed
    needed = [every.get(uuid, 0) for uuid in config.gpu.uuids]
    yield from rules.reasons(config.host.gpus, here, needed)


def library_reasons(
    config: SnapshotConfig, images: Path, annotations: Mapping[str, str], settings: Config
) -> Iterator[str]:
    """Every reason why the GPU memory library that the snapshot needs cannot be had here.

    `images` are CRIU's, `annotations` those of the container, `settings` the operator's.
    """
    if config.gpu.regions and not preload.is_wanted(annotations, settings):
        yield "its GPU memory is moved by Thaw's library, the pod's is to be by the driver alone"
    if config.origin.library:
        try:
            carried = str(images / preload.CARRIED)
            preload.find(settings.text("gpu.preloaded"), config.origin.library, carried)
        except Unfit as error:
            yield error.message


def never_fits(live: Origin) -> Iterator[str]:
    """Why no process can be restored into such a container, whatever the snapshot."""
    if live.namespaces["pid"] != "new":
        yield "the container has no pid namespace of its own (shared pid namespace or hostPID)"
    if live.namespaces["network"] == "host":
        yield "the pod is on the host's network (hostNetwork)"


def _isolation(config: SnapshotConfig, live: Origin, _host: Host) -> Iterator[str]:
    yield from never_fits(live)
    for kind, now in live.namespaces.items():
        then = config.origin.namespaces.get(kind)
        if then != now:
            yield f"its {kind} namespace was {then!r}, here it is {now!r}"


def _image(config: SnapshotConfig, live: Origin, _host: Host) -> Iterator[str]:
    if config.origin.image_digest and live.image_digest:
        same = config.origin.image_digest == live.image_digest
    else:
        same = config.origin.image == live.image
    if not same:
        yield f"made from image {_named(config.origin)}, the pod has {_named(live)}"


def _process(config: SnapshotConfig, live: Origin, _host: Host) -> Iterator[str]:
    then = config.origin
    yield from _arguments(then.args, live.args)
    for what in ("cwd", "terminal", "user"):
        was, is_ = getattr(then, what), getattr(live, what)
        if was != is_:
            yield f"{what} was {str(was)[:200]}, the pod has {str(is_)[:200]}"


def _arguments(then: list[str], now: list[str]) -> Iterator[str]:
    """Which differ, and never what they are: this is read in logs, and keys are passed that way."""
    if len(then) != len(now):
        yield f"it has {len(then)} arguments, the pod {len(now)} (the program is one)"
        return
    for number, (was, is_) in enumerate(zip(then, now, strict=True)):
        if was != is_:
            yield f"argument {number} differs" if number else "the program (argument 0) differs"


def _privileges(config: SnapshotConfig, live: Origin, _host: Host) -> Iterator[str]:
    for kind, names in config.origin.capabilities.items():
        more = sorted(set(names) - set(live.capabilities.get(kind, [])))
        if more:
            yield f"it has {kind} capabilities that the pod has not: {' '.join(more)}"
    if live.no_new_privileges and not config.origin.no_new_privileges:
        yield "it could gain privileges (allowPrivilegeEscalation), the pod must not"
    for what in ("seccomp", "apparmor", "selinux"):
        if getattr(config.origin, what) != getattr(live, what):
            yield f"its {what} profile is not the pod's"
    if config.origin.read_only != live.read_only:
        yield "one root file system is read-only, the other is not"


def _mounts(config: SnapshotConfig, live: Origin, _host: Host) -> Iterator[str]:
    then, now = _by_destination(config.origin), _by_destination(live)
    for destination in sorted(then.keys() | now.keys()):
        if destination not in now:
            yield f"the pod lacks a mount at {destination}"
        elif destination not in then:
            yield f"the pod has a mount at {destination} that the snapshot lacks"
        elif then[destination] != now[destination]:
            was, is_ = _flags(then[destination]), _flags(now[destination])
            yield f"mount {destination} was {was}, here it is {is_}"


def _by_destination(origin: Origin) -> dict[str, list[SpecMount]]:
    """There may be several at one destination; the last one is what the container sees."""
    mounts: dict[str, list[SpecMount]] = {}
    for mount in origin.mounts:
        mounts.setdefault(mount.destination, []).append(mount)
    return mounts


def _flags(mounts: list[SpecMount]) -> str:
    return " then ".join(
        f"{mount.type} ({','.join(map(_option, mount.options))})" for mount in mounts
    )


def _option(text: str) -> str:
    """An option, with its value only if that can be no secret: cifs has password=…, for one."""
    name, equals, _ = text.partition("=")
    return f"{name}=…" if equals and name not in _SHOWN else text


def _named(origin: Origin) -> str:
    return " ".join(word for word in (origin.image, origin.image_digest) if word) or "unknown"
