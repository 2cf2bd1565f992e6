"""`thaw export`: write a snapshot into one tar file, or as images for CRIU's own tools."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from shim.cli import output
from shim.cli.progress import Progress
from shim.cli.seal import sealed
from shim.config import Config
from shim.errors import InvalidArgument
from shim.snapshot import exporting
from shim.snapshot.artifact import manifest_of
from shim.snapshot.snapshot import check_whole
from shim.snapshot.store import Snapshot, Stores, held


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("file", metavar="FILE", nargs="?", help="to write; - is stdout")
    parser.add_argument(
        "--criu", default="", metavar="DIR", help="instead: a folder of plain CRIU images"
    )
    parser.add_argument("--replace", action="store_true", help="what is there already")


def run(args: argparse.Namespace, config: Config) -> int:
    """Write it, and say which digest it has."""
    if bool(args.file) == bool(args.criu):
        raise InvalidArgument("where to?", hint="give FILE, or --criu DIR")
    snapshot = Stores.of(config).open(args.reference)
    with held(snapshot.path):
        if args.criu:
            return _write_images(args, snapshot)
        if args.file == "-":
            return _write_stdout(args, snapshot)
        return _write_file(args, snapshot)


def _write_images(args: argparse.Namespace, snapshot: Snapshot) -> int:
    check_whole(snapshot, sums=False)
    exporting.write_images(snapshot, Path(os.path.abspath(args.criu)), args.replace)
    output.emit(args, {"folder": args.criu, "id": snapshot.id}, lambda: [args.criu])
    output.say(args, f"`crit` shows them; `criu restore` needs what was around {snapshot.id}, too")
    moved = sum(region.size for region in snapshot.config.gpu.regions)
    if moved:
        size = output.size(moved)
        output.say(args, f"not among them: {size} of GPU memory, which Thaw alone puts back")
    return 0


def _write_stdout(args: argparse.Namespace, snapshot: Snapshot) -> int:
    if sys.stdout.isatty():
        raise InvalidArgument("a snapshot is not for a terminal", hint="give FILE, or a pipe")
    sys.stdout.flush()
    _write(args, snapshot, 1)
    return 0


def _write_file(args: argparse.Namespace, snapshot: Snapshot) -> int:
    path = Path(os.path.abspath(args.file))
    with exporting.new_file(path, args.replace) as writer:
        digest = _write(args, snapshot, writer)
    document = {
        "file": args.file,
        "digest": digest,
        "id": snapshot.id,
        "bytes": path.stat().st_size,
    }
    output.emit(args, document, lambda: [f"{args.file}  {digest}"])
    return 0


def _write(args: argparse.Namespace, snapshot: Snapshot, writer: int) -> str:
    digest = sealed(args, snapshot)
    total = exporting.size_of_export(manifest_of(snapshot)[1])
    with Progress(args, f"export {args.reference}", total) as progress:
        exporting.write_layout(snapshot, args.reference, writer, progress)
        output.say(args, progress.figures)
    return digest
