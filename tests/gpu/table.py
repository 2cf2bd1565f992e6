"""The figures of a run for people, and their picture: python -m gpu.table FILE [--svg FILE]."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu.drawing import Bar, svg
from gpu.figures import COLD, HELD, WARM, parts
from gpu.report import report

_TITLE = "Seconds from the pod's creation (stock CRIU: from its start) to the first token"
_STOCK = (("criu", "CRIU"), ("restore", "CUDA restore"), ("unlock", "unlock"))


def main(words: Sequence[str]) -> int:
    """Print the tables, draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m gpu.table", description=__doc__)
    parser.add_argument("document", type=Path, help="what run.sh --json has written")
    parser.add_argument("--svg", type=Path, help="a file for the picture")
    args = parser.parse_args(words)
    found = json.loads(args.document.read_text())
    print("\n".join(report(found)))
    if args.svg:
        args.svg.write_text(svg(list(bars(found)), _TITLE))
    return 0


def bars(found: Mapping[str, Any]) -> Iterator[Bar]:
    """For each worker the fastest restore of each kind, and the one of stock CRIU."""
    for name, worker in found.get("workers", {}).items():
        first = True
        for cache, word in ((HELD, "node's cache"), (WARM, "page cache"), (COLD, "disk")):
            best = _fastest(worker.get("thaw", {}), cache)
            if best:
                yield Bar(f"{name}, {word}", parts(best), apart=first)
                first = False
            theirs = _fastest(worker.get("stock", {}), cache)
            if theirs:
                phases = [(shown, theirs[key]) for key, shown in _STOCK]
                phases.append(("first token", theirs["first answer"]))
                yield Bar(f"stock CRIU, {word}", phases)


def _fastest(side: Mapping[str, Any], cache: str) -> dict[str, Any]:
    there = [one for one in side.get("restores", []) if one["cache"] == cache]
    return min(there, key=lambda one: float(one["answered"]), default={})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
