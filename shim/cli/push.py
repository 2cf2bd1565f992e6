"""`thaw push`: a snapshot to a registry."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shim.cli import output
from shim.cli.progress import Progress as Bar
from shim.config import Config
from shim.reference import parse
from shim.registry.progress import Progress
from shim.snapshot.store import Stores


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("name", metavar="NAME", help="of the snapshot")
    parser.add_argument("reference", metavar="REFERENCE", help="REGISTRY/REPOSITORY:TAG")


def run(args: argparse.Namespace, config: Config) -> int:
    """Send it, sealed first if it is not, and say which digest it has."""
    from shim.registry import push

    snapshot = Stores.of(config).open(args.name)
    with shown(args) as progress:
        digest = push(snapshot, parse(args.reference), config, progress)
    print_outcome(args, progress, snapshot.id, digest)
    return 0


class Shown(Progress):
    """Progress on stderr: a bar for each stage."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.began = time.monotonic()
        self.bytes = 0  # of the last stage
        self._args = args
        self._bar: Bar | None = None

    def begin(self, what: str, total: int) -> None:
        self.end()
        self.bytes = total
        self._bar = Bar(self._args, what, total)
        self._bar.__enter__()

    def advance(self, count: int) -> None:
        if self._bar:
            self._bar(count)

    def note(self, sentence: str) -> None:
        output.say(self._args, sentence)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.__exit__()
        self._bar = None


@contextmanager
def shown(args: argparse.Namespace) -> Iterator[Shown]:
    """Progress while the block lasts."""
    progress = Shown(args)
    try:
        yield progress
    finally:
        progress.end()


def print_outcome(args: argparse.Namespace, progress: Shown, id: str, digest: str) -> None:
    """Print what is where now: its digest, or all of it as JSON."""
    seconds = time.monotonic() - progress.began
    document = {"digest": digest, "id": id, "bytes": progress.bytes, "seconds": round(seconds, 3)}
    output.emit(args, document, lambda: [f"{id}  {digest}"])
    done = f"{output.size(progress.bytes)} in {output.duration(seconds)}"
    output.say(args, f"{done}, {output.rate(progress.bytes, seconds)}" if progress.bytes else done)
