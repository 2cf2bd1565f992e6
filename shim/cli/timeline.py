"""`thaw timeline`: how long the steps of a checkpoint or a restore took."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from shim import trace
from shim.cli import output
from shim.config import Config
from shim.errors import Unfit
from shim.snapshot.store import Stores
from shim.timeline import Span

_LARGEST = 64 << 20  # bytes of a document


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "of",
        metavar="REF|FILE",
        help="a snapshot: its checkpoint; a file (with a / in it, or .json at its end, or -): "
        "JSON with spans",
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw it")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="also write a trace that ui.perfetto.dev opens"
    )


def run(args: argparse.Namespace, config: Config) -> int:
    """Print the steps as a table; write what else is asked for."""
    spans = _spans(args.of, config)
    title = f"thaw: {args.of}"
    if args.svg:
        args.svg.write_text(trace.svg(spans, title), encoding="utf-8")
    if args.trace:
        args.trace.write_text(json.dumps(trace.trace(spans, title)), encoding="ascii")
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    output.emit(
        args,
        [span for span, _ in trace.nested(spans)],
        lambda: output.table(
            trace.HEADS, trace.rows(spans, ascii=plain), right=("START", "SECONDS")
        ),
    )
    return 0


def _spans(of: str, config: Config) -> list[Span]:
    if of == "-":
        return trace.parse(sys.stdin.read(_LARGEST), "standard input")
    if of.endswith(".json") or of.startswith(("/", "./", "../")):
        with open(of, encoding="utf-8", errors="replace") as file:
            return trace.parse(file.read(_LARGEST), of)
    spans = Stores.of(config).open(of).config.spans
    if not spans:
        raise Unfit(f"{of} does not say how it was made", hint="it has no spans")
    return [span for span in spans if span.start >= 0 and span.seconds >= 0]
