"""Names and digests of a store: small files that hold the id of a snapshot (see names.py).

One is made by link(2), so that of two makers one wins, and replaced by one rename: a reader sees an
id or another, never half of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from shim import names
from shim.errors import AlreadyExists, NoSuchSnapshot
from shim.names import DIGESTS, NAMES
from shim.snapshot import locks
from shim.snapshot.replacing import sync


class Tags:
    """Those of the store in `folder`; `there` says whether it has a snapshot of an id.

    Files that are being written have names that begin with `draft`, in the store's own folder.
    """

    def __init__(self, folder: Path, there: Callable[[str], bool], draft: str) -> None:
        self._folder = folder
        self._there = there
        self._draft = draft

    def all(self) -> dict[str, str]:
        """Every name that stands for an id: file name → id."""
        found = {
            name: names.read_id(str(self._name(name))) for name in listed(self._folder / NAMES)
        }
        return {name: id for name, id in sorted(found.items()) if id is not None}

    def taken(self, file_name: str) -> bool:
        """Whether a name stands for a snapshot that is there, or is no name of ours."""
        return self._taken(self._name(file_name))

    def make(self, file_name: str, id: str, replace: bool) -> str:
        """Let a name stand for an id; answers the one before, or "". Raises AlreadyExists."""
        return self._link(self._name(file_name), id, replace)

    def make_digest(self, hex: str, id: str) -> None:
        """Let a digest lead to a snapshot; if it leads to another that is there, it stays so."""
        try:
            self._link(self._folder / DIGESTS / hex, id, replace=False)
        except AlreadyExists:
            pass  # the same bytes are here twice

    def remove(self, file_name: str) -> None:
        """Remove a name. Raises NoSuchSnapshot."""
        try:
            with self.alone():
                self._name(file_name).unlink()
                sync(self._folder / NAMES)
        except FileNotFoundError:
            raise NoSuchSnapshot(
                f"no snapshot named {unquote(file_name)} in {self._folder}", hint="see `thaw ls`"
            ) from None

    def forget(self, id: str) -> list[str]:
        """Remove all that leads to a snapshot; answers the digests among it."""
        with self.alone():
            self._unlink_all(self._folder / NAMES, id)
            return self._unlink_all(self._folder / DIGESTS, id)

    def _unlink_all(self, folder: Path, id: str) -> list[str]:
        found = [name for name in listed(folder) if names.read_id(str(folder / name)) == id]
        for name in found:
            (folder / name).unlink(missing_ok=True)
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else changes names meanwhile: one that is looked at is still the same."""
        folder = self._folder / NAMES
        folder.mkdir(mode=0o700, exist_ok=True)
        with locks.alone(folder / f".{locks.LOCK}"):
            yield

    def _name(self, file_name: str) -> Path:
        return self._folder / NAMES / file_name

    def _taken(self, path: Path) -> bool:
        if not os.path.lexists(path):
            return False
        id = names.read_id(str(path))
        return id is None or self._there(id)

    def _link(self, path: Path, id: str, replace: bool) -> str:
        """Make the file `path`, which holds an id: whole, or not at all."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with self.alone(), self._written(f"{id}\n") as new:
            before = names.read_id(str(path)) or ""
            if not replace and self._taken(path):
                raise exists(path.name)
            if replace or os.path.lexists(path):  # what it stood for has been removed
                os.rename(new, path)
            else:
                try:
                    os.link(new, path)
                except FileExistsError:  # made on a file system that has no locks
                    raise exists(path.name) from None
            sync(path.parent)
            return before

    @contextmanager
    def _written(self, text: str) -> Iterator[Path]:
        """A file that is on the disk, under a name nobody looks for; swept if we are killed."""
        path = self._folder / f"{self._draft}{os.urandom(6).hex()}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                os.write(fd, text.encode())
                os.fsync(fd)
            finally:
                os.close(fd)
            yield path
        finally:
            path.unlink(missing_ok=True)


def listed(folder: Path, *, hidden: bool = False) -> list[str]:
    """What is in a folder, in no order; nothing if there is none."""
    try:
        found = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in found if hidden or not name.startswith(".")]


def exists(file_name: str) -> AlreadyExists:
    """The error that says that a name is taken."""
    name = unquote(file_name)
    return AlreadyExists(
        f"a snapshot named {name} exists", hint=f"`thaw rm {name}` removes it; see also --replace"
    )
