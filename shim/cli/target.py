"""The container that a snapshot would be restored into: a bundle, or a container that exists."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim import spawn
from shim.annotations import Wish, wish
from shim.bundle import Bundle, annotations_of
from shim.cli import output
from shim.cli.checkpoint import find
from shim.config import Config
from shim.doctor.node import SOCKET
from shim.errors import NotFound, Unavailable
from shim.proto.task_pb import Mount
from shim.runc import Runc
from shim.snapshot.config import Origin
from shim.snapshot.image import image_of
from shim.snapshot.origin import origin_of
from shim.task.options import kept
from shim.work import Work

_BUNDLES = "/run/containerd/io.containerd.runtime.v2.task"  # containerd's own, NAMESPACE/ID
_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


@dataclass(frozen=True)
class Target:
    """A container as an engine would be told of it, what its spec says, and what it asks for."""

    work: Work
    spec: dict[str, Any]
    live: Origin
    asks: Wish | None


def arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Declare how a target is named."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--bundle", type=Path, metavar="DIR", help="a bundle, with its config.json")
    group.add_argument("--container", default="", metavar="ID", help="a container of Thaw's")
    parser.add_argument(
        "-n", "--namespace", default="", help="containerd's namespace; default: wherever it is"
    )
    parser.add_argument(
        "--address", default=SOCKET, metavar="SOCKET", help="containerd's; default: %(default)s"
    )


def named(args: argparse.Namespace, config: Config) -> Target | None:
    """The target that the arguments name, if they do. Raises NotFound, InvalidArgument."""
    if args.container:
        folder = find(config, args.namespace, args.container)
        namespace, id = folder.parent.name, folder.name
        bundle = _bundle_of(config, namespace, id)
        config = kept(bundle)
    elif args.bundle is not None:
        path = args.bundle.resolve()
        bundle, id = Bundle(str(path)), path.name
        namespace = args.namespace or path.parent.name or "default"
        folder = Path(config.text("state")) / namespace / id
    else:
        return None
    spec = bundle.spec()
    address = args.address if os.path.exists(args.address) else ""
    work = Work(
        verb="restore",
        id=id,
        namespace=namespace,
        bundle=bundle,
        folder=folder,
        rootfs=_rootfs(bundle.rootfs),
        terminal=bool((spec.get("process") or {}).get("terminal")),
        config=config,
        containerd=address,
    )
    return Target(work, spec, _live(args, work, spec), wish(annotations_of(spec)))


def _live(args: argparse.Namespace, work: Work, spec: Mapping[str, Any]) -> Origin:
    try:
        image = image_of(work.containerd, work.namespace, work.id)
    except Unavailable as error:
        image = "", ""
        output.say(args, f"images are compared by name: {error.message}")
    return origin_of(spec, *image)


def _bundle_of(config: Config, namespace: str, id: str) -> Bundle:
    """Where the bundle of a container is: runc knows, while there is one."""
    runc = Runc(config, namespace, id, "/dev/null", spawn.run)
    try:
        said = spawn.run([*runc.command, "state", id], runc.env)
        path = json.loads(said.text)["bundle"] if said.status == 0 else ""
    except (OSError, ValueError, KeyError, TypeError):
        path = ""
    for place in (path, f"{_BUNDLES}/{namespace}/{id}"):
        if isinstance(place, str) and place and os.path.exists(f"{place}/config.json"):
            return Bundle(place)
    raise NotFound(
        f"no bundle of container {id} in {namespace}", hint="name it: --bundle DIR, if there is one"
    )


def _rootfs(path: str) -> tuple[Mount, ...]:
    """What is mounted there, as containerd would have sent it; see proc(5)."""
    real = os.path.realpath(path)
    with open("/proc/self/mountinfo") as table:
        lines = [line.rstrip("\n").partition(" - ") for line in table]
    found = [
        (after.split(" "))
        for before, _, after in lines
        if _unescaped(before.split(" ")[4]) == real and after.count(" ") >= 2
    ]
    if not found:
        return ()
    kind, source, options = found[-1][:3]  # the last one is on top
    parts = [_unescaped(option) for option in options.split(",")]
    return (Mount(type=kind, source=_unescaped(source), target="", options=parts),)


def _unescaped(text: str) -> str:
    for code, character in _ESCAPES.items():
        text = text.replace(code, character)
    return text
