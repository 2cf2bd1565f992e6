"""`thaw import`: make a snapshot of a tar file: an exported one, or kubelet's checkpoint.

Also of a folder with an OCI image layout, as `skopeo copy docker://… oci:DIR` makes it.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from shim import audit
from shim.cli import output
from shim.cli.progress import Progress
from shim.config import Config
from shim.errors import CheckpointFailed, Damaged, InvalidArgument, ThawError, Unfit
from shim.reference import parse
from shim.snapshot.importing import (
    Chunks,
    Layout,
    Stream,
    files_of,
    is_layout,
    take_folder,
    take_tar,
)
from shim.snapshot.kubelet import is_checkpoint, take_checkpoint
from shim.snapshot.store import Draft, Store, Stores
from shim.snapshot.writing import is_full, no_room, writing


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="a tar, or a folder; - is stdin")
    parser.add_argument("name", metavar="NAME", help="of the snapshot")
    parser.add_argument(
        "--replace", action="store_true", help="even if NAME stands for another snapshot"
    )


def run(args: argparse.Namespace, config: Config) -> int:
    """Make the snapshot in the first store, and say which id and digest it has."""
    if args.file == "-" and os.isatty(0):
        raise InvalidArgument("a snapshot does not come from a terminal", hint="give FILE")
    store = Stores.of(config).first
    try:
        with Progress(args, f"import {args.name}", _size(args.file)) as progress:
            id, digest = _import(args, store, progress)
            output.say(args, progress.figures)
    except ThawError as error:
        audit.record(config, "create", name=args.name, outcome=error.reason)
        raise
    audit.record(config, "create", name=args.name, id=id, digest=digest, outcome="imported")
    document = {"name": args.name, "id": id, "digest": digest}
    output.emit(args, document, lambda: [f"{args.name}  {id}  {digest}".rstrip()])
    return 0


def _import(args: argparse.Namespace, store: Store, progress: Progress) -> tuple[str, str]:
    try:
        with store.draft(parse(args.name), args.replace) as draft, writing(store.folder):
            digest = _fill(draft, args.file, progress)
            draft.publish()
            if digest:
                store.note_digest(draft.id, digest)
            return draft.id, digest
    except CheckpointFailed as error:  # packing what kubelet has not
        if is_full(error):
            raise no_room(store.folder) from error
        raise


def _fill(draft: Draft, path: str, progress: Progress) -> str:
    if path != "-" and os.path.isdir(path):
        return take_folder(Layout(draft.path, path), Path(path), progress)
    source = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _take(draft, files_of(Stream(source, progress), path), path)
    finally:
        os.close(source)


def _take(draft: Draft, files: Iterable[tuple[str, int, Chunks]], where: str) -> str:
    """Make a snapshot of a tar, whichever kind it is; its digest, if it has one by that."""
    files = iter(files)
    try:
        first = next(files, None)
    except Damaged as error:
        raise _neither(where, error.message.removeprefix(f"{where}: ")) from error
    if first is not None and is_layout(first[0]):
        return take_tar(Layout(draft.path, where), itertools.chain([first], files))
    if first is not None and is_checkpoint(first[0]):
        take_checkpoint(draft, itertools.chain([first], files), where)
        return ""
    raise _neither(where, f"it begins with {first[0]!a}" if first else "there is nothing in it")


def _neither(where: str, found: str) -> Unfit:
    hint = "`thaw export` makes what is meant, and so does kubelet's checkpoint of a pod of Thaw's"
    return Unfit(f"{where} is neither an exported snapshot nor a checkpoint: {found}", hint=hint)


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0
