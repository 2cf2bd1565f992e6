"""`thaw ls`: the snapshots, a line for each name."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from shim import names
from shim.cli import output
from shim.config import Config
from shim.snapshot.store import Entry, Store, Stores

HEADS = ("NAME", "ID", "DIGEST", "CONTAINER", "NAMESPACE", "MADE", "USED", "SIZE", "IMAGE")
_DIGITS = 12  # of a digest


@dataclass(frozen=True)
class Line:
    """A name, or a snapshot that has none, in one of the stores."""

    name: str
    entry: Entry
    store: str


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("-a", "--all", action="store_true", help="also those without a name")
    parser.add_argument("-q", "--quiet", action="store_true", help="names only")


def run(args: argparse.Namespace, config: Config) -> int:
    """Print a table."""
    lines = [line for store in Stores.of(config) for line in _lines(store, unnamed=args.all)]
    if args.quiet:
        shown = [line.name or line.entry.id for line in lines]
        output.emit(args, shown, lambda: shown)
        return 0
    several = len({line.store for line in lines}) > 1
    heads = (*HEADS, "STORE") if several else HEADS
    output.emit(
        args,
        [_document(line) for line in lines],
        lambda: output.table(
            heads, [_cells(line)[: len(heads)] for line in lines], right=("SIZE",)
        ),
    )
    return 0


def _lines(store: Store, *, unnamed: bool) -> Iterator[Line]:
    entries = store.entries()
    there = {entry.id for entry in entries}
    lost = [
        Entry(id, [names.unquoted(name)], error=f"there is no snapshot {id} any more")
        for name, id in store.names().items()
        if id not in there
    ]
    found = [(name, entry) for entry in [*entries, *lost] for name in entry.names]
    if unnamed:
        found += [("", entry) for entry in entries if not entry.names]
    for name, entry in sorted(found, key=lambda item: (not item[0], item[0], item[1].id)):
        yield Line(name, entry, str(store.folder))


def _cells(line: Line) -> tuple[str, ...]:
    entry = line.entry
    digest = entry.digest.removeprefix("sha256:")[:_DIGITS] or "-"
    origin = entry.snapshot.config.origin if entry.snapshot else None
    namespace = (origin.namespace if origin else "") or "-"
    return (
        line.name or "-",
        entry.id,
        digest,
        (origin.container if origin else "") or "-",
        f"{namespace} (shared)" if entry.shared else namespace,
        output.ago(entry.created),
        output.ago(entry.used) if entry.used else "never",
        output.size(entry.size),
        origin.image if origin else f"damaged: {entry.error}",
        line.store,
    )


def _document(line: Line) -> dict[str, object]:
    entry = line.entry
    origin = entry.snapshot.config.origin if entry.snapshot else None
    return {
        "name": line.name,
        "id": entry.id,
        "digest": entry.digest,
        "container": origin.container if origin else "",
        "namespace": origin.namespace if origin else "",
        "image": origin.image if origin else "",
        "shared": entry.shared,
        "created": entry.created,
        "used": entry.used,
        "size": entry.size,
        "error": entry.error,
        "store": line.store,
    }
