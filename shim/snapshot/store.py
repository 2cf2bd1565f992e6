"""The stores: references in, snapshots out, and how a snapshot comes and goes.

    STORE/names/FILE       the id that a tag stands for       (names.py reads them)
    STORE/digests/HEX      the id of the snapshot with that manifest
    STORE/snapshots/ID/    a snapshot: see __init__.py
    STORE/.draft-ID/       one that is being written, or removed
    STRIPE/snapshots/ID/   its pieces that lie on another disk; .draft-ID/ likewise

A draft is held by a lock as long as its maker lives (locks.py: the file `lock` in it, which a
snapshot keeps, and which is no part of the artifact). It is written to disk whole and then renamed,
its stripes first: readers see a complete snapshot or none. Removal is the same the other way
round. So whatever a killed maker or remover leaves, in a stripe too, has a `.draft-ID` in the store
that nobody holds, and the next maker sweeps it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from shim import names
from shim.config import Config
from shim.errors import BadName, FailedPrecondition, NoSuchSnapshot, ThawError
from shim.names import DIGESTS, KEY, NAMES, SNAPSHOTS
from shim.reference import Reference, parse
from shim.removal import remove_folder
from shim.snapshot import lease, lost
from shim.snapshot.config import DAMAGED
from shim.snapshot.draft import DRAFT, Draft, touch
from shim.snapshot.entry import Entry
from shim.snapshot.locks import claim, held, hold, remove_claimed, seized, sign
from shim.snapshot.replacing import sync
from shim.snapshot.snapshot import (
    CONFIG,
    SHARED,
    USED,
    Snapshot,
    check_file_owner,
    check_owner,
    check_whole,
    open_at,
    size_of,
)
from shim.snapshot.tags import Tags, exists, listed
from shim.snapshot.writing import is_full, no_room, writing

__all__ = [
    "CONFIG",
    "DAMAGED",
    "Draft",
    "Entry",
    "Snapshot",
    "Store",
    "Stores",
    "check_owner",
    "check_whole",
    "held",
    "open_at",
    "size_of",
]


class Store:
    """One folder of snapshots, with the folders that its snapshots are striped over."""

    def __init__(self, folder: str | Path, stripes: Iterable[str | Path] = ()) -> None:
        self.folder = Path(folder)
        self.stripes = tuple(Path(stripe) for stripe in stripes)
        self._tags = Tags(self.folder, lambda id: os.path.lexists(self.path_of(id)), DRAFT)

    # Reading

    def path_of(self, id: str) -> Path:
        """Where the snapshot of that id is, if it is."""
        return self.folder / SNAPSHOTS / id

    def snapshot(self, id: str) -> Snapshot:
        """The snapshot of that id. Raises NoSuchSnapshot, or Unfit if it is not to be trusted."""
        path = self.path_of(id)
        if not names.is_id(id) or not os.path.lexists(path):
            raise self._none(id)
        self.check_owner()
        return open_at(path, [stripe / SNAPSHOTS / id for stripe in self.stripes])

    def _none(self, id: str) -> NoSuchSnapshot:
        return NoSuchSnapshot(f"no snapshot {id[:80]!r} in {self.folder}", hint="see `thaw ls`")

    def check_owner(self) -> None:
        """Raise Unfit unless the store's folders are root's alone."""
        for name in ("", SNAPSHOTS, NAMES, DIGESTS, lease.FOLDER, lost.FOLDER):
            if os.path.lexists(self.folder / name):
                check_owner(self.folder / name)
        if os.path.lexists(self.folder / KEY):
            check_file_owner(self.folder / KEY)

    def ids(self) -> list[str]:
        """The ids of all snapshots, sorted."""
        return sorted(filter(names.is_id, listed(self.folder / SNAPSHOTS)))

    def names(self) -> dict[str, str]:
        """Every tag that stands for an id: file name → id."""
        return self._tags.all()

    def entries(self) -> list[Entry]:
        """All snapshots, by id; one that cannot be read has an error."""
        tags: dict[str, list[str]] = {}
        for name, id in self.names().items():
            tags.setdefault(id, []).append(unquote(name))
        found = (self._entry(id, tags.get(id, [])) for id in self.ids())
        return [entry for entry in found if entry is not None]

    def _entry(self, id: str, tags: list[str]) -> Entry | None:
        """None if it has been removed by now."""
        path = self.path_of(id)
        size = sum(map(size_of, (path, *(stripe / SNAPSHOTS / id for stripe in self.stripes))))
        try:
            found = self.snapshot(id)
            marks = (found.digest, found.shared, found.used, found.created)
            return Entry(id, tags, *marks, size, snapshot=found)
        except (ThawError, OSError) as error:
            try:
                made = os.lstat(path).st_mtime
            except FileNotFoundError:
                return None
            return Entry(id, tags, created=made, size=size, error=str(error))

    # Names

    def tag(self, file_name: str, id: str, replace: bool = False) -> None:
        """Let a name stand for a snapshot. Raises AlreadyExists, NoSuchSnapshot."""
        with self._writing(), held(self.path_of(id)):
            self._there(id)
            self._tags.make(file_name, id, replace)

    def untag(self, file_name: str) -> None:
        """Remove a name; its snapshot stays. Raises NoSuchSnapshot."""
        with self._writing():
            self._tags.remove(file_name)

    def note_digest(self, id: str, digest: str) -> None:
        """Let a digest lead to a snapshot; one that leads to another that is there stays."""
        with self._writing():
            self._tags.make_digest(digest.removeprefix("sha256:"), id)

    def taken(self, file_name: str) -> bool:
        """Whether a name stands for a snapshot that is there, or is no name of ours."""
        return self._tags.taken(file_name)

    def name_draft(self, file_name: str, id: str, replace: bool) -> str:
        """As tag(), for a snapshot that we hold; answers the id that the name stood for, or ""."""
        return self._tags.make(file_name, id, replace)

    # Marks

    def mark_shared(self, id: str, shared: bool) -> None:
        """Let pods of all namespaces restore a snapshot, or not."""
        path = self._there(id) / SHARED
        with self._writing():
            if shared:
                touch(path)
            else:
                path.unlink(missing_ok=True)

    def mark_used(self, id: str) -> None:
        """Note that it was restored just now, unless nothing can be written here."""
        try:
            path = self._there(id) / USED
            touch(path)
            os.utime(path)
        except (ThawError, OSError):
            pass

    def _there(self, id: str) -> Path:
        path = self.path_of(id)
        if not names.is_id(id) or not path.is_dir():
            raise self._none(id)
        return path

    # Coming and going

    def remove(self, id: str, wait: bool = False) -> None:
        """Delete a snapshot: its names and digests, then itself, then its contents.

        Raises NoSuchSnapshot, and FailedPrecondition while it is restored from unless told to
        `wait` for the end of that.
        """
        path = self.path_of(id)
        if not names.is_id(id) or not os.path.lexists(path):
            raise self._none(id)
        with self._writing(), ExitStack() as stack:
            try:
                lock = _lock_to_remove(path, id, wait)
            except FileNotFoundError:
                raise self._none(id) from None
            if lock is not None:
                stack.callback(os.close, lock)
                with suppress(OSError):  # of a full disk: all the more reason to remove it
                    sign(lock)
            self._forget(id)
            self._bury(id)

    def _forget(self, id: str) -> None:
        """Remove all that leads to a snapshot; a digest then leads to another that has it."""
        lost = {f"sha256:{hex}" for hex in self._tags.forget(id)}
        for other in self.ids() if lost else []:
            if other != id:
                self._note_again(other, lost)

    def _note_again(self, id: str, digests: set[str]) -> None:
        try:
            lock = hold(self.path_of(id), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # it is being removed
            return
        try:
            digest = self.snapshot(id).digest
            if digest in digests:
                self.note_digest(id, digest)
        except ThawError:  # it cannot be read, or is gone
            pass
        finally:
            os.close(lock)

    def _bury(self, id: str) -> None:
        """Remove a snapshot's folders: the first step takes it from the store, at once."""
        grave = self.folder / f"{DRAFT}{id}"
        if os.path.lexists(self.path_of(id)):
            os.rename(self.path_of(id), grave)
            sync(self.folder / SNAPSHOTS)
        self._clear(id)

    def _clear(self, id: str) -> None:
        """Remove what is left of a draft or a removed snapshot, its place in the store last."""
        for stripe in self.stripes:
            remove_folder(str(stripe / f"{DRAFT}{id}"))
            if not os.path.lexists(self.path_of(id)):
                remove_folder(str(stripe / SNAPSHOTS / id))
        remove_claimed(self.folder / f"{DRAFT}{id}")

    @contextmanager
    def draft(self, reference: Reference | str | None, replace: bool = False) -> Iterator[Draft]:
        """A snapshot to be written; it is published at the end, if not before.

        Raises AlreadyExists if the name is taken (now, or when it is published) and is not to be
        replaced, BadName, StoreFull, FailedPrecondition if the store cannot be written to. On any
        error nothing is left of it.
        """
        name = _name_of(reference)
        with self._writing():
            for folder in (self.folder, *self.stripes):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                (folder / SNAPSHOTS).mkdir(mode=0o700, exist_ok=True)
                check_owner(folder)
                check_owner(folder / SNAPSHOTS)
            self.check_owner()
        if name and not replace and self.taken(name):
            raise exists(name)
        with self._writing():
            self.sweep()
            id, lock = self._begin()
        with ExitStack() as stack:
            stack.callback(os.close, lock)
            draft = Draft(self, id, name, replace, stack)
            try:
                draft.begin()
                yield draft
                draft.publish()
            except BaseException as error:
                self._take_back(draft, error)
                if isinstance(error, OSError) and is_full(error):
                    raise no_room(self.folder) from error
                raise

    def _take_back(self, draft: Draft, cause: BaseException) -> None:
        """Leave nothing of a draft, published or not; `cause` is what is raised in any case."""
        for step in (partial(self._rename_back, draft), partial(self._bury, draft.id)):
            try:
                step()
            except (ThawError, OSError) as error:
                cause.add_note(f"and it could not be undone: {error}")

    def _rename_back(self, draft: Draft) -> None:
        if draft.published:
            self._forget(draft.id)
            if draft.before and os.path.lexists(self.path_of(draft.before)):  # it may be in use
                self._tags.make(draft.name, draft.before, replace=False)

    def keep(self, file_name: str, stack: ExitStack) -> None:
        """Hold the snapshot that a name stands for, so that nobody removes it meanwhile."""
        id = names.read_id(str(self.folder / NAMES / file_name))
        if id is not None:
            with suppress(OSError):  # it is being made, or removed: nobody else removes it now
                lock = hold(self.path_of(id), fcntl.LOCK_SH | fcntl.LOCK_NB)
                stack.callback(os.close, lock)

    def _begin(self) -> tuple[str, int]:
        """A new folder for a draft, and its lock. A sweeper may come before the lock."""
        while True:
            id = os.urandom(names.ID_LENGTH // 2).hex()
            path = self.folder / f"{DRAFT}{id}"
            path.mkdir(mode=0o700)
            with suppress(FileNotFoundError):
                return id, claim(path)

    def sweep(self) -> None:
        """Remove what makers and removers that died have left: their locks are free."""
        for name in listed(self.folder, hidden=True):
            if name.startswith(DRAFT):
                self._sweep_one(name)

    def _sweep_one(self, name: str) -> None:
        path = self.folder / name
        with suppress(OSError):  # its maker lives, or another sweeper was quicker
            kind = os.lstat(path).st_mode
            if stat.S_ISREG(kind):  # of a name: there is one only while names are changed
                with self._tags.alone():
                    path.unlink(missing_ok=True)
            elif stat.S_ISDIR(kind):
                with seized(path):
                    if names.is_id(name.removeprefix(DRAFT)):
                        self._clear(name.removeprefix(DRAFT))
                    else:  # of a restore that had its pages files put together
                        remove_claimed(path)

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self.folder)


class Stores(list[Store]):
    """All stores of a node, in the order in which they are searched."""

    @classmethod
    def of(cls, config: Config) -> Stores:
        """Those that the operator has configured."""
        stripes = config.several("stripes")
        return cls(Store(folder, stripes) for folder in config.several("snapshots"))

    @property
    def first(self) -> Store:
        """Where new snapshots go."""
        return self[0]

    def find(self, reference: Reference | str) -> tuple[Store, str]:
        """The store that has a snapshot, and its id. Raises BadName, NoSuchSnapshot.

        An id of a snapshot is a name here too, if nothing else is called so.
        """
        wanted = parse(reference) if isinstance(reference, str) else reference
        for store in self:
            id = names.id_of(str(store.folder), wanted)
            if id is not None and os.path.lexists(store.path_of(id)):
                return store, id
        for store in self:
            if names.is_id(wanted.text) and os.path.lexists(store.path_of(wanted.text)):
                return store, wanted.text
        places = ", ".join(str(store.folder) for store in self)
        raise NoSuchSnapshot(f"no snapshot named {wanted.text} in {places}", hint="see `thaw ls`")

    def open(self, reference: Reference | str) -> Snapshot:
        """The snapshot that a reference leads to. Raises BadName, NoSuchSnapshot, Unfit."""
        store, id = self.find(reference)
        return store.snapshot(id)

    def at(self, path: Path) -> tuple[Store, str]:
        """The store that the folder of a snapshot is in, and its id. Raises NoSuchSnapshot."""
        for store in self:
            if path == store.path_of(path.name) and os.path.lexists(path):
                return store, path.name
        raise NoSuchSnapshot(f"{path} is no snapshot of a store", hint="see `thaw ls`")


def _name_of(reference: Reference | str | None) -> str:
    """The name that a new snapshot gets; empty if only its digest shall lead to it."""
    if reference is None:
        return ""
    wanted = parse(reference) if isinstance(reference, str) else reference
    if wanted.auto or (wanted.digest and not wanted.remote):
        raise BadName(
            f"a new snapshot cannot be called {wanted.text}",
            hint="digests and `auto` are for snapshots that exist",
        )
    return wanted.file_name if not wanted.remote or wanted.tag else ""


def _lock_to_remove(path: Path, id: str, wait: bool) -> int | None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):  # nothing of ours, but in a snapshot's place
        return None
    try:
        return hold(path, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(
            f"snapshot {id} is being restored from, or made", hint="try again when that is over"
        ) from None
