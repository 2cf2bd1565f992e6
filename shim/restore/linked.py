"""The folder from which CRIU restores: links to its images, and ours in the place of some.

Without an index CRIU gets all pagemaps and pages files; with one, those of the skeleton.
"""

from __future__ import annotations

import os
from pathlib import Path

from shim.restore.plan import Plan
from shim.restore.sockets import NAME
from shim.snapshot.index import Index
from shim.snapshot.pieces import link


def lay(folder: Path, plan: Plan, index: Index | None, *, pagemaps: bool) -> None:
    """Make the folder, or make it whole. Raises OSError.

    Without the pagemaps CRIU cannot restore anything: they come with a second call, once it is
    known that CRIU stops for us.
    """
    if index is not None:
        index.link(folder, pagemaps=pagemaps)
    else:
        _link_all(plan.assembled or plan.images, folder, pagemaps)
    if plan.sockets is not None and plan.sockets.changed:
        _put(folder / NAME, plan.sockets.data)
    for name, data in plan.rewritten.items():
        _put(folder / name, data)


def _link_all(images: Path, folder: Path, pagemaps: bool) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in os.listdir(images):
        if pagemaps or not name.startswith("pagemap-"):
            link(images / name, folder / name)


def _put(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # a link, until now
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
