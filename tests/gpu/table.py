"""The figures of a run for people, and their picture: python -m gpu.table FILE [--svg FILE]."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpu.drawing import Bar, svg
from gpu.figures import COLD, HELD, LATER, STOCK, WARM, Document, middle, parts, workers
from gpu.report import report

_TITLE = "Seconds from the pod's creation (stock CRIU: from its start) to the first token"
_WHENCE = {HELD: "node's cache", LATER: "after 0.5 s", WARM: "page cache", COLD: "disk"}


def main(words: Sequence[str]) -> int:
    """Print the tables, draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m gpu.table", description=__doc__)
    parser.add_argument("document", type=Path, help="what run.sh --json has written")
    parser.add_argument("--svg", type=Path, help="a file for the picture")
    known = ",".join(_WHENCE)
    parser.add_argument("--caches", default=known, help=f"what is in it, of {known}")
    args = parser.parse_args(words)
    found = json.loads(args.document.read_text())
    print("\n".join(report(found)))
    if args.svg:
        args.svg.write_text(svg(list(bars(found, args.caches.split(","))), _TITLE))
    return 0


def bars(found: Document, caches: Sequence[str]) -> Iterator[Bar]:
    """For each worker the middle restore of each of these kinds, and the one of stock CRIU."""
    for name, worker in workers(found):
        first = True
        for cache in caches:
            word = _WHENCE[cache]
            ours = middle(worker.get("thaw", {}), cache)
            if ours:
                yield Bar(f"{name}, {word}", parts(ours), apart=first)
                first = False
            theirs = middle(worker.get("stock", {}), cache)
            if theirs:
                phases = [(shown, theirs[key]) for key, shown in STOCK.items()]
                phases.append(("first token", theirs["first answer"]))
                yield Bar(f"stock CRIU, {word}", phases)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
