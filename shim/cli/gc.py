"""`thaw gc`: remove what the limits of retention leave no room for, and what nobody can reach."""

from __future__ import annotations

import argparse
import os

from shim.cli import exits, output
from shim.config import Config
from shim.snapshot import retention
from shim.snapshot.retention import Removal
from shim.snapshot.store import Stores

HEADS = ("SNAPSHOT", "WHY", "SIZE", "")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")


def run(args: argparse.Namespace, config: Config) -> int:
    """Remove it, store by store; non-zero if something could not be removed."""
    step = retention.find if args.dry_run else retention.apply
    found: list[Removal] = []
    for store in Stores.of(config):
        if store.folder.exists() and not os.access(store.folder, os.W_OK):
            output.say(args, f"{store.folder} can only be read")
            continue
        found += step(store, config)
    output.emit(
        args,
        found,
        lambda: output.table(HEADS, map(_row, found), right=("SIZE",)) if found else [],
    )
    if not found:
        output.say(args, "nothing to remove")
        return exits.OK
    gone = sum(removal.size for removal in found if not removal.error)
    output.say(args, f"{output.size(gone)} {'would be freed' if args.dry_run else 'freed'}")
    return exits.FAILED if any(removal.error for removal in found) else exits.OK


def _row(removal: Removal) -> tuple[str, ...]:
    called = ", ".join(removal.names) or removal.id or str(removal.path)
    return called, removal.why, output.size(removal.size), removal.error
