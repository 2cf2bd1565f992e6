"""`thaw checkpoint`: ask a container's running shim for a snapshot."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from shim.cli.output import emit, size
from shim.config import Config
from shim.errors import InvalidArgument, NotFound
from shim.proto.control_pb import CheckpointRequest, CheckpointResponse
from shim.ttrpc.client import Client

SERVICE = "thaw.v1.Control"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("container", metavar="CONTAINER-ID", help="its id, or the beginning of it")
    parser.add_argument("name", metavar="NAME", help="of the snapshot: [a-z0-9][a-z0-9._-]{0,62}")
    parser.add_argument("--exit", action="store_true", help="end the container once it is dumped")
    parser.add_argument(
        "--replace", action="store_true", help="let NAME stand for this one if there is one already"
    )
    parser.add_argument(
        "--shared", action="store_true", help="let pods of all namespaces be restored from it"
    )
    parser.add_argument(
        "-n", "--namespace", default="", help="containerd's namespace; default: wherever it is"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="default: %(default)s"
    )


def run(args: argparse.Namespace, config: Config) -> int:
    """Make the snapshot and say where it is."""
    folder = find(config, args.namespace, args.container)
    request = CheckpointRequest(
        id=folder.name,
        name=args.name,
        exit=args.exit,
        replace=args.replace,
        shared=args.shared,
    )
    with Client(os.path.realpath(folder / "shim.sock")) as shim:
        made = shim.call(SERVICE, "Checkpoint", request, CheckpointResponse, timeout=args.timeout)
    document = {
        "name": args.name,
        "path": made.path,
        "bytes": made.bytes,
        "seconds": made.seconds,
        "frozen": made.frozen,
    }
    line = (
        f"{made.path}: {size(made.bytes)} in {made.seconds:.2f} s, "
        f"container stopped for {made.frozen:.2f} s"
    )
    emit(args, document, lambda: [line])
    return 0


def find(config: Config, namespace: str, beginning: str) -> Path:
    """The state folder of the container. Raises NotFound, or InvalidArgument if several match."""
    if not beginning or not beginning.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise InvalidArgument(f"bad container id {beginning!r}")
    state = Path(config.text("state"))
    found = [path for path in state.glob(f"{namespace or '*'}/{beginning}*") if path.is_dir()]
    exact = [path for path in found if path.name == beginning]
    matches = exact or found
    if not matches:
        raise NotFound(
            f"no container {beginning} under {state}",
            hint="only containers of runtime io.containerd.thaw.v1 have a place there",
        )
    if len(matches) > 1:
        names = ", ".join(f"{path.parent.name}/{path.name[:16]}" for path in matches[:4])
        raise InvalidArgument(f"{beginning} could be {names}", hint="give more of it, or -n")
    return matches[0]
