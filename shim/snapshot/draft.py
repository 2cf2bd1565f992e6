"""A snapshot that is being written, and how it becomes one at once."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from shim.names import SNAPSHOTS
from shim.snapshot.replacing import sync
from shim.snapshot.snapshot import PAGES, SHARED
from shim.snapshot.writing import writing

if TYPE_CHECKING:
    from contextlib import ExitStack

    from shim.snapshot.store import Store

DRAFT = ".draft-"  # begins a name that nothing in a store has


class Draft:
    """A snapshot that is being written, in the folders `roots`, of which the first is `path`."""

    def __init__(self, store: Store, id: str, name: str, replace: bool, kept: ExitStack) -> None:
        self.id = id
        self.name = name  # a file name, or empty
        self.before = ""  # the id that the name stood for, once it is replaced
        self.published = False
        self._store = store
        self._replace = replace
        self._kept = kept  # closed when its maker is done
        self._folders = (store.folder, *store.stripes)
        self.roots = tuple(folder / f"{DRAFT}{id}" for folder in self._folders)

    @property
    def path(self) -> Path:
        """The main folder; another one once it is published."""
        return self.roots[0]

    @property
    def pages(self) -> tuple[Path, ...]:
        """The folders for the pieces of the pages: they exist."""
        return tuple(root / PAGES for root in self.roots)

    def begin(self) -> None:
        """Make the folders."""
        for folder, root, pages in zip(self._folders, self.roots, self.pages, strict=True):
            with writing(folder):
                root.mkdir(mode=0o700, exist_ok=True)
                pages.mkdir(mode=0o700)

    def mark_shared(self) -> None:
        """Let pods of all namespaces restore it, from the beginning."""
        touch(self.path / SHARED)

    def publish(self) -> None:
        """Bring it to the disk and give it its place and its name; once is enough.

        Raises AlreadyExists if somebody else has made the name meanwhile, StoreFull.
        """
        if self.published:
            return
        final = tuple(folder / SNAPSHOTS / self.id for folder in self._folders)
        for folder, root in zip(self._folders, self.roots, strict=True):
            with writing(folder):
                sync_below(root)
        with writing(self._store.folder):
            for root, place in reversed(list(zip(self.roots, final, strict=True))):
                root.rename(place)
                sync(place.parent)
            self.roots = final
            self.published = True
            if self.name:
                if self._replace:  # nobody may remove what may yet have to get its name back
                    self._store.keep(self.name, self._kept)
                self.before = self._store.name_draft(self.name, self.id, self._replace)


def sync_below(folder: Path) -> None:
    """Bring every file and folder below `folder` to the disk, so that the rename comes last."""
    for parent, _folders, files in os.walk(folder):
        for name in files:
            path = os.path.join(parent, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                sync(Path(path))
        sync(Path(parent))


def touch(path: Path) -> None:
    """Make a mark: an empty file, if there is none."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    os.close(os.open(path, flags, 0o600))
