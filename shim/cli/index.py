"""`thaw index`: make the index of CRIU's images, so that our own engine restores their memory."""

from __future__ import annotations

import argparse
from pathlib import Path

from shim.config import Config
from shim.errors import InvalidArgument
from shim.snapshot.index import FOLDER

_MIB = 1 << 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a snapshot, or CRIU's images")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="default: one per processor"
    )


def run(args: argparse.Namespace, _config: Config) -> int:
    """Make it and say how much of the memory is in it."""
    from shim.snapshot.indexing import make

    # A snapshot of ours has the images in a folder of their own.
    images = next((f for f in (args.folder / "criu", args.folder) if _has_images(f)), None)
    if images is None:
        raise InvalidArgument(
            f"{args.folder} has no CRIU images in it",
            hint="a snapshot is meant, or the folder with inventory.img",
        )
    folder = args.folder / FOLDER
    made = make(images, folder, args.threads)
    if made.reason:
        print(f"{folder}: not indexed, CRIU restores it alone: {made.reason}")
        return 0
    shown = {name: f"{size / _MIB:.1f} MiB" for name, size in made.sizes.items()}
    print(
        f"{folder}: {shown['extents']} in {made.count} extents, {shown['zero']} zero, "
        f"{shown['skeleton']} left to CRIU"
    )
    return 0


def _has_images(folder: Path) -> bool:
    return (folder / "inventory.img").is_file()
