"""`thaw cache`: what GPU memory of which snapshots the node's cache has, and dropping it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from shim.cache import client
from shim.cli import exits, output
from shim.config import Config
from shim.errors import NotFound, ThawError
from shim.snapshot.store import Stores

HEADS = ("SNAPSHOT", "SIZE", "OWN", "USED", "")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--drop", metavar="NAME", action="append", default=[], help="forget it; may be repeated"
    )


def run(args: argparse.Namespace, config: Config) -> int:
    """Print it, or drop what is named."""
    found = client.answer(config, {"verb": "list"})
    if args.drop:
        for name in args.drop:
            client.answer(config, {"verb": "drop", "key": _key(config, found["snapshots"], name)})
            output.say(args, f"{name}: not in the cache any more")
        return exits.OK
    output.emit(args, found, lambda: _lines(config, found))
    return exits.OK


def _key(config: Config, snapshots: list[dict[str, Any]], name: str) -> str:
    """What a snapshot is called there; it need not be in a store any more."""
    for account in snapshots:
        if name in (Path(account["path"]).name, account["path"]):
            return str(account["key"])
    store, id = Stores.of(config).find(name)
    for account in snapshots:
        if account["path"] == str(store.path_of(id)):
            return str(account["key"])
    raise NotFound(f"{name} is not in the cache", hint="see `thaw cache`")


def _lines(config: Config, found: Mapping[str, Any]) -> Iterator[str]:
    sizes = {word: output.size(found[word]) for word in ("limit", "held", "used", "pinned")}
    yield "{used} used, {held} held of {limit}, {pinned} pinned".format(**sizes)
    if found["snapshots"]:
        called = dict(_called(config))
        rows = [_row(called, account) for account in found["snapshots"]]
        yield from output.table(HEADS, rows, right=("SIZE", "OWN"))


def _row(called: Mapping[str, str], account: Mapping[str, Any]) -> tuple[str, ...]:
    path = account["path"]
    return (
        called.get(path, path),
        output.size(account["size"]),
        output.size(account["own"]),
        output.ago(account["used"]),
        "being copied" if account["busy"] else "",
    )


def _called(config: Config) -> Iterator[tuple[str, str]]:
    """What snapshots are called, by the paths of their folders."""
    for store in Stores.of(config):
        try:
            names = store.names()
        except (ThawError, OSError):
            continue
        yield from ((str(store.path_of(id)), id) for id in store.ids())
        yield from ((str(store.path_of(id)), unquote(name)) for name, id in names.items())
