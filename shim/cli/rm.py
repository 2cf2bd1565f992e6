"""`thaw rm`: remove snapshots."""

from __future__ import annotations

import argparse

from shim.config import Config
from shim.snapshot.store import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("names", metavar="NAME", nargs="+")


def run(args: argparse.Namespace, config: Config) -> int:
    """Remove each; the first that cannot be removed ends it."""
    for name in args.names:
        Store(config.text("snapshots")).remove(name)
    return 0
