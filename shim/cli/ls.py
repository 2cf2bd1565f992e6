"""`thaw ls`: the snapshots, one a line."""

from __future__ import annotations

import argparse

from shim.config import Config
from shim.errors import Unfit
from shim.snapshot.store import Store, size_of


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("-q", "--quiet", action="store_true", help="names only")


def run(args: argparse.Namespace, config: Config) -> int:
    """Print a table."""
    store = Store(config.text("snapshots"))
    rows = [("NAME", "CONTAINER", "MADE", "SIZE", "IMAGE")]
    for name in store.names():
        if args.quiet:
            print(name)
            continue
        try:
            made = store.open(name).config
        except Unfit as error:
            rows.append((name, "-", "-", "-", error.message))
            continue
        size = f"{size_of(store.folder / name) / 2**20:.1f} MiB"
        rows.append((name, made.origin.container or "-", made.created, size, made.origin.image))
    if args.quiet:
        return 0
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print(_plain("  ".join([*cells, row[4]]).rstrip()))
    return 0


def _plain(text: str) -> str:
    # An image's name is whatever the pod said: it may not steer the terminal.
    return "".join(c if c.isprintable() else "?" for c in text)
