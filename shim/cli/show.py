"""`thaw show`: the config document of a snapshot."""

from __future__ import annotations

import argparse

from shim.config import Config
from shim.snapshot.store import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("name", metavar="NAME")


def run(args: argparse.Namespace, config: Config) -> int:
    """Print it as JSON."""
    print(Store(config.text("snapshots")).open(args.name).config.to_json(), end="")
    return 0
