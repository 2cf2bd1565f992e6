"""Our part of a checkpoint that containerd asked for, as one file beside CRIU's images.

containerd's CRI copies a checkpoint file by file and has no notion of folders in it. Such a
checkpoint travels, and whoever hands one over may have made it: the file is untrusted.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from shim.snapshot.archive import Archive, pack_whole
from shim.snapshot.tree import open_directory

PACK = "thaw.tar"
FOLDER = "thaw"


def pack(images: Path) -> None:
    """Turn the folder of ours in `images` into one file. Raises CheckpointFailed."""
    pack_whole(images / FOLDER, images / PACK)
    shutil.rmtree(images / FOLDER)


def unpacked(images: Path) -> Path | None:
    """The folder of ours in `images`, taken out of the file if need be; None if there is none.

    Raises Unfit or Damaged if there is something else in the file, and OSError.
    """
    folder = images / FOLDER
    if not folder.is_dir() and (images / PACK).is_file():
        new = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=images))
        try:
            unpack(images / PACK, new)
            os.rename(new, folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            if not folder.is_dir():  # another restore was faster
                raise
    return folder if folder.is_dir() else None


def unpack(path: Path, folder: Path) -> None:
    """Lay what is in the file into a folder. Raises Unfit, Damaged and OSError."""
    target = open_directory(folder)
    try:
        Archive(path, whole=True).extract(target, whiteouts=False)
    finally:
        os.close(target)
