"""`thaw pull`: a snapshot from a registry."""

from __future__ import annotations

import argparse

from shim.cli.push import print_outcome, shown
from shim.config import Config
from shim.reference import parse
from shim.snapshot.store import Stores


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "reference", metavar="REFERENCE", help="REGISTRY/REPOSITORY:TAG, or …@sha256:…"
    )
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="another name for it")
    parser.add_argument(
        "--replace", action="store_true", help="even if NAME stands for another snapshot"
    )
    parser.add_argument(
        "--from-containerd",
        default="",
        metavar="ADDRESS",
        help="take what this containerd has already, as /run/containerd/containerd.sock",
    )
    parser.add_argument(
        "-n", "--namespace", default="k8s.io", help="containerd's namespace; default: %(default)s"
    )


def run(args: argparse.Namespace, config: Config) -> int:
    """Fetch it into the first store, and say which digest it has."""
    from shim.registry import pull

    store = Stores.of(config).first
    with shown(args) as progress:
        id = pull(
            store,
            parse(args.reference),
            config,
            progress,
            name=args.name,
            replace=args.replace,
            containerd=args.from_containerd,
            namespace=args.namespace,
        )
    print_outcome(args, progress, id, store.snapshot(id).digest)
    return 0
