"""Where snapshots lie: on a tmpfs of huge pages, for a while."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bed.lane import Lane


@contextmanager
def huge_pages(lane: Lane) -> Iterator[None]:
    """A block in which the lane's snapshots lie in memory. It has none before, and none after."""
    folder = lane.places.snapshots
    with mounted(folder, "mode=700,huge=always,size=80%"):
        for part in ("names", "digests", "leases", "snapshots"):
            (folder / part).mkdir(mode=0o700)
        try:
            yield
        finally:
            lane.clear()  # nobody reads them any more


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A block in which a tmpfs is mounted there; the folder is empty afterwards."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        # An engine may still be letting go of a snapshot's files: nobody new comes to it, though.
        subprocess.run(["umount", "--lazy", folder], check=True)
        for path in folder.iterdir():
            shutil.rmtree(path)
