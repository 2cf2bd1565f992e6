"""Our part of a checkpoint that containerd asked for, as one file beside CRIU's images.

containerd's CRI copies a checkpoint file by file and has no notion of folders in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from shim import spawn
from shim.errors import ThawError, Unknown

PACK = "thaw.tar"
FOLDER = "thaw"
_KEPT = ("--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner")


def pack(images: Path) -> None:
    """Turn the folder of ours in `images` into one file."""
    _tar("--create", *_KEPT, "-f", str(images / PACK), "-C", str(images / FOLDER), ".")
    shutil.rmtree(images / FOLDER)


def unpacked(images: Path) -> Path | None:
    """The folder of ours in `images`, taken out of the file if need be; None if there is none."""
    folder = images / FOLDER
    if not folder.is_dir() and (images / PACK).is_file():
        new = tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=images)
        try:
            _tar("--extract", *_KEPT, "-f", str(images / PACK), "-C", new)
            os.rename(new, folder)
        except (ThawError, OSError):
            shutil.rmtree(new, ignore_errors=True)
            if not folder.is_dir():  # another restore was faster
                raise
    return folder if folder.is_dir() else None


def _tar(*arguments: str) -> None:
    argv = ["tar", *arguments]
    done = spawn.run(argv, {**os.environ, "LC_ALL": "C"})
    if done.status:
        raise Unknown(f"{' '.join(argv)}: {done.text[-300:]}")
