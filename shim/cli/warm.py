"""`thaw warm`: have the GPU memory of snapshots read into the node's cache, before it is needed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from shim.cache import client
from shim.cli import exits, output
from shim.cli.progress import Progress
from shim.config import Config
from shim.errors import ThawError, Unavailable
from shim.snapshot.store import Stores


@dataclass
class Line:
    """What came of one snapshot."""

    name: str
    bytes: int = 0
    seconds: float = 0.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("references", metavar="REF", nargs="+")


def run(args: argparse.Namespace, config: Config) -> int:
    """Wait until each is there; what is there already takes no time."""
    stores, lines, status = Stores.of(config), [], exits.OK
    for reference in args.references:
        try:
            store, id = stores.find(reference)
            lines.append(_warmed(args, config, reference, store.path_of(id)))
        except (ThawError, OSError) as error:
            output.complain("warm", error)
            status = status or exits.status_of(error)
    output.emit(args, lines, lambda: [_text(line) for line in lines])
    return status


def _warmed(args: argparse.Namespace, config: Config, name: str, path: Path) -> Line:
    line, taken = Line(name), False
    with Progress(args, f"warm {name}") as progress:
        for answer in client.ask(config, {"verb": "take", "path": str(path), "wait": True}):
            line.bytes = int(answer.get("total", line.bytes))
            progress.expect(line.bytes - progress.total)
            progress(int(answer.get("done", progress.done)) - progress.done)
            taken = answer.get("taken") is True
        line.seconds = progress.seconds
    if not taken:
        raise Unavailable(f"the cache has gone away before it had {name}", hint="try again")
    return line


def _text(line: Line) -> str:
    figures = f"{output.size(line.bytes)} in {output.duration(line.seconds)}"
    return f"{line.name}: in the cache ({figures})"
