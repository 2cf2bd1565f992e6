"""The folder from which CRIU restores: links to its images, and ours in the place of some.

Without an index CRIU gets all pagemaps and pages files; with one, those of the skeleton.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from shim.restore.plan import Plan
from shim.restore.sockets import NAME
from shim.snapshot.images import is_pagemap
from shim.snapshot.index import Index
from shim.snapshot.pieces import link


def lay(folder: Path, plan: Plan, index: Index | None) -> None:
    """Make the folder, but for the pagemaps: without them CRIU cannot restore anything.

    Raises OSError.
    """
    _link(folder, plan, index, lambda name: not is_pagemap(name))
    if plan.sockets is not None and plan.sockets.changed:
        _put(folder / NAME, plan.sockets.data)
    for name, data in plan.rewritten.items():
        _put(folder / name, data)


def complete(folder: Path, plan: Plan, index: Index | None) -> None:
    """Add the pagemaps, once it is known that CRIU stops for us. Raises OSError."""
    _link(folder, plan, index, is_pagemap)


def _link(folder: Path, plan: Plan, index: Index | None, wanted: Callable[[str], bool]) -> None:
    if index is not None:
        index.link(folder, wanted)
        return
    images = plan.assembled or plan.images
    link(((images / name, name) for name in os.listdir(images) if wanted(name)), folder)


def _put(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # a link, until now
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
