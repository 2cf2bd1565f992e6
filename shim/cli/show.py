"""`thaw show`: what a snapshot was made from, and what it needs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import datetime

from shim.checkpoint.verifying import RESTORED
from shim.cli import output
from shim.config import Config
from shim.names import unquoted
from shim.snapshot.config import Gpu, SnapshotConfig
from shim.snapshot.cuda import CudaProcess
from shim.snapshot.snapshot import size_of
from shim.snapshot.store import Snapshot, Store, Stores


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("reference", metavar="REF", help="a name, NAME@sha256:…, or an id")


def run(args: argparse.Namespace, config: Config) -> int:
    """Print the facts; as JSON the whole config document, too."""
    store, id = Stores.of(config).find(args.reference)
    snapshot = store.snapshot(id)
    names = _names(store, id)
    output.emit(
        args,
        {
            "id": id,
            "names": names,
            "digest": snapshot.digest,
            "shared": snapshot.shared,
            "used": snapshot.used,
            "path": snapshot.path,
            "roots": snapshot.roots,
            "size": _size(snapshot),
            "config": asdict(snapshot.config),
        },
        lambda: output.facts([*_place(snapshot, names), *_contents(snapshot.config)]),
    )
    return 0


def _names(store: Store, id: str) -> list[str]:
    return [unquoted(name) for name, other in store.names().items() if other == id]


def _size(snapshot: Snapshot) -> int:
    return sum(map(size_of, snapshot.roots))


def _place(snapshot: Snapshot, names: list[str]) -> list[tuple[str, object]]:
    return [
        ("name", names),
        ("id", snapshot.id),
        ("digest", snapshot.digest or "- (not sealed)"),
        ("path", snapshot.roots),
        ("size", output.size(_size(snapshot))),
        ("used", output.moment(snapshot.used) if snapshot.used else "never"),
        ("shared", "with all namespaces" if snapshot.shared else "no"),
    ]


def _contents(config: SnapshotConfig) -> list[tuple[str, object]]:
    origin, host, maker = config.origin, config.host, config.maker
    maker_words = [f"Thaw {maker.version}" if maker.version else "", maker.node, maker.by]
    return [
        ("made", _moment(config.created)),
        ("made by", ", ".join(word for word in maker_words if word)),
        ("verified", _verified(config.verified)),
        ("container", origin.container),
        ("namespace", origin.namespace),
        ("service account", origin.service_account),
        ("image", origin.image),
        ("image digest", origin.image_digest),
        ("arguments", [repr(word) for word in origin.args]),
        ("folder", origin.cwd),
        ("user", _user(origin.user)),
        ("environment", " ".join(origin.env)),
        ("terminal", "yes" if origin.terminal else "no"),
        ("architecture", host.architecture),
        ("kernel", host.kernel),
        ("kernel features", " ".join(host.kernel_features)),
        ("CRIU", host.criu),
        ("CPU features", f"{len(host.cpu_features)} (see -o json)"),
        ("cgroup", f"v{host.cgroup}" if host.cgroup else ""),
        ("GPUs", [_gpu(gpu) for gpu in host.gpus]),
        ("GPU memory", [_gpu_memory(process) for process in config.gpu.processes]),
        ("volumes", config.volumes),
        ("upper directory", "changed" if config.difference else "as in the image"),
        ("connections", _connections(config)),
        ("sizes", [f"{name}: {output.size(n)}" for name, n in sorted(config.sizes.items())]),
        ("steps", [f"{span.name}: {output.duration(span.seconds)}" for span in config.spans]),
    ]


def _moment(created: str) -> str:
    """As all other times are shown."""
    try:
        return output.moment(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return created


def _verified(became: str) -> str:
    """What was found out before it was published, see checkpoint/verifying.py."""
    return "restored beside its original" if became == RESTORED else became or "no"


def _user(ids: list[int]) -> str:
    if len(ids) < 2:
        return ""
    groups = f", groups {' '.join(map(str, ids[2:]))}" if ids[2:] else ""
    return f"uid {ids[0]}, gid {ids[1]}{groups}"


def _gpu(gpu: Gpu) -> str:
    return f"{gpu.count}: {gpu.model}, {output.size(gpu.memory)}, driver {gpu.driver}"


def _gpu_memory(process: CudaProcess) -> str:
    """What of it is moved by us, what the driver has, and why."""
    if process.reason:
        return f"process {process.pid}: all by the driver: {process.reason}"
    moved = output.size(sum(region.size for region in process.regions))
    left = ", ".join(f"{output.size(size)} {kind}" for kind, size in sorted(process.left.items()))
    return f"process {process.pid}: {moved} by us" + (f"; by the driver {left}" if left else "")


def _connections(config: SnapshotConfig) -> str:
    return f"{config.connections.inside} inside, {config.connections.outside} to outside"
