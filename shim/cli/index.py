"""`thaw index`: make the index of CRIU's images, so that our own engine restores their memory."""

from __future__ import annotations

import argparse
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shim.cli import output
from shim.config import Config
from shim.errors import FailedPrecondition, InvalidArgument
from shim.snapshot import pack
from shim.snapshot.index import FOLDER, Index

_MOST_THREADS = 1024


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder of CRIU's images")
    parser.add_argument(
        "--threads", type=_threads, default=0, metavar="N", help="default: one per processor"
    )


def run(args: argparse.Namespace, _config: Config) -> int:
    """Make it and say how much of the memory is in it."""
    from shim.snapshot.indexing import make

    if _is_snapshot(args.folder):
        raise InvalidArgument(
            f"{args.folder} is a snapshot of the store: a snapshot is immutable",
            hint="it has got its index when it was made; make it again for another one",
        )
    images = args.folder
    if not (images / "inventory.img").is_file():
        raise InvalidArgument(
            f"{images} has no CRIU images in it", hint="the folder with inventory.img is meant"
        )
    # A restore looks into the folder, packed or not, and nowhere else.
    if (images / pack.PACK).exists() or (images / pack.FOLDER).exists():
        raise InvalidArgument(
            f"{images} is a checkpoint that containerd asked for: its index is in {pack.PACK}",
            hint="another index beside it would not be used: make the checkpoint again",
        )
    folder = args.folder / FOLDER
    with _alone(args.folder):  # rather now than after all is read
        pass
    made = make(images, folder, args.threads, _alone(args.folder))
    document = {"folder": folder, "reason": made.reason, "extents": made.count, "sizes": made.sizes}
    output.emit(args, document, lambda: [_told(made)])
    return 0


def _told(made: Index) -> str:
    if made.reason:
        return f"{made.folder}: not indexed, CRIU restores it alone: {made.reason}"
    shown = {name: output.size(count) for name, count in made.sizes.items()}
    many = "" if made.count == 1 else "s"
    return (
        f"{made.folder}: {shown['extents']} in {made.count} extent{many}, {shown['zero']} zero, "
        f"{shown['skeleton']} left to CRIU"
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep restores from beginning, which hold a shared lock; see snapshot/store.py."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"{folder} is being restored from", hint="try again when that is over"
            ) from None
        yield
    finally:
        os.close(lock)


def _threads(text: str) -> int:
    if not (text.isdecimal() and int(text) <= _MOST_THREADS):
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 to {_MOST_THREADS}")
    return int(text)


def _is_snapshot(folder: Path) -> bool:
    """Whether it is a snapshot, whose pages are in pieces beside the images, or its images."""
    folder = folder.parent if folder.name == "criu" else folder
    parts = (folder / "config.json", folder / "criu", folder / "pages")
    return all(map(os.path.lexists, parts))
