"""What has to go from a store, and its going: limits of age and size, and what nobody can reach.

Gone are, in this order: snapshots that neither a name nor a digest leads to; those that were not
restored (or made) for longer than `retention.age`; and, until `retention.size` is enough for the
rest, those that were restored longest ago. Never one that is in use, and never one that has come
within the last minute: whoever made it may be about to give it its name. Bytes that several
snapshots have in common, as they were pulled one after the other, count once, and are free when the
last of them goes. A pull that nobody has resumed for a day goes too; so do leases, and files that
were about to become one, or the key, if nobody has touched them for a day; and so does what a
stripe has of snapshots that no store has.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from time import time
from typing import Any

from shim import audit, names
from shim.config import Config
from shim.errors import FailedPrecondition, NoSuchSnapshot, ThawError
from shim.removal import remove_folder
from shim.snapshot.lease import FOLDER as LEASES
from shim.snapshot.locks import hold, touched
from shim.snapshot.snapshot import CONFIG, blocks_of, size_of
from shim.snapshot.store import Entry, Store, Stores

YOUNG = 60.0  # seconds in which a snapshot is not touched
FORGOTTEN = 86400.0  # seconds after which nobody resumes a pull
_PULL = ".pull-"
_DRAFT = ".draft-"
_KEY = ".key-"


@dataclass(frozen=True)
class Limits:
    """What the operator allows a store."""

    size: int = 0  # bytes; 0: any
    age: float = 0.0  # seconds since the last restore; 0: any

    @classmethod
    def of(cls, config: Config) -> Limits:
        """The configuration's: GiB and days there."""
        size, age = config.number("retention.size"), config.number("retention.age")
        return cls(int(size * 2**30), age * 86400)


@dataclass(frozen=True)
class Candidate:
    """A snapshot that may have to go. `arrived`: when it came into this store, as Unix time."""

    entry: Entry
    arrived: float = 0.0
    reachable: bool = True  # by a name or a digest
    busy: bool = False
    blocks: Mapping[Any, int] = field(default_factory=dict)  # inode → bytes; {}: all its own

    @property
    def last(self) -> float:
        """When it was last of use: restored, or else made, or fetched."""
        return max(self.entry.used or self.entry.created, self.arrived)


@dataclass(frozen=True)
class Removal:
    """Something that has to go, or is gone. `error`: why it is still there."""

    why: str  # unreachable, age, size, leftover (of a pull) or orphan (in a stripe)
    path: Path
    size: int  # bytes on disk
    id: str = ""
    names: list[str] = field(default_factory=list)
    digest: str = ""
    error: str = ""


def plan(candidates: Iterable[Candidate], limits: Limits, now: float) -> list[tuple[str, Entry]]:
    """Which snapshots of a store have to go, in this order, and why. Touches nothing."""
    kept = sorted(candidates, key=lambda c: (c.reachable, c.last))
    owners = Counter(block for candidate in kept for block in _blocks(candidate))
    sizes = {block: size for candidate in kept for block, size in _blocks(candidate).items()}
    total = sum(sizes.values())
    going = []
    for candidate in kept:
        if candidate.busy or now - max(candidate.arrived, candidate.entry.created) < YOUNG:
            continue
        why = _why(candidate, limits, now, total)
        if why:
            going.append((why, candidate.entry))
            owners.subtract(_blocks(candidate).keys())
            total -= sum(sizes[block] for block in _blocks(candidate) if not owners[block])
    return going


def _blocks(candidate: Candidate) -> Mapping[Any, int]:
    return candidate.blocks or {candidate.entry.id: candidate.entry.size}


def _why(candidate: Candidate, limits: Limits, now: float, total: int) -> str:
    if not candidate.reachable:
        return "unreachable"
    if limits.age and now - candidate.last > limits.age:
        return "age"
    return "size" if limits.size and total > limits.size else ""


def find(store: Store, config: Config) -> list[Removal]:
    """All that has to go from a store and its stripes now: nothing if we can only read it there.

    Touches nothing.
    """
    if not os.access(store.folder, os.W_OK):
        return []
    now = time()
    snapshots = [
        Removal(why, store.path_of(e.id), e.size, e.id, list(e.names), e.digest)
        for why, e in plan(_candidates(store), Limits.of(config), now)
    ]
    return [*snapshots, *_leftovers(store, now), *_orphans(store, config, now)]


def apply(store: Store, config: Config) -> list[Removal]:
    """Remove it. What could not be removed has an error; what is gone by now is left out.

    Raises nothing of the store's: whoever has just made a snapshot need not care.
    """
    try:
        store.sweep()
        going = find(store, config)
    except (ThawError, OSError) as error:
        return [Removal("", store.folder, 0, error=str(error))]
    return [done for removal in going if (done := _remove(store, config, removal)) is not None]


def _remove(store: Store, config: Config, removal: Removal) -> Removal | None:
    try:
        if removal.id:
            store.remove(removal.id)
        else:
            _remove_unused(removal.path)
    except NoSuchSnapshot:
        return None
    except FailedPrecondition as error:  # a restore has begun: another time
        return replace(removal, error=str(error))
    except (ThawError, OSError) as error:
        removal = replace(removal, error=str(error))
    audit.record(
        config,
        "remove",
        name=",".join(removal.names),
        id=removal.id,
        digest=removal.digest,
        path="" if removal.id else str(removal.path),
        outcome="failed" if removal.error else "removed",
        reason=removal.error or f"retention: {removal.why}",
    )
    return removal


def _candidates(store: Store) -> Iterator[Candidate]:
    # A digest may lead to a snapshot that cannot be read here, e.g. of a newer version.
    digests = store.folder / names.DIGESTS
    reached = {names.read_id(str(digests / name)) for name in _listed(digests)}
    for entry in store.entries():
        path = store.path_of(entry.id)
        reachable = bool(entry.names or entry.digest) or entry.id in reached
        roots = (path, *(stripe / names.SNAPSHOTS / entry.id for stripe in store.stripes))
        blocks = {inode: size for root in roots for inode, size in blocks_of(root).items()}
        yield Candidate(entry, _arrived(path), reachable, _busy(path), blocks)


def _leftovers(store: Store, now: float) -> Iterator[Removal]:
    for name in _listed(store.folder):
        path = store.folder / name
        if name.startswith(_PULL) and now - touched(path) > FORGOTTEN and not _busy(path):
            yield Removal("leftover", path, size_of(path))
    files = [store.folder / name for name in _listed(store.folder) if name.startswith(_KEY)]
    files += [store.folder / LEASES / name for name in _listed(store.folder / LEASES)]
    for path in files:  # a lease that somebody has is renewed all the time
        with suppress(FileNotFoundError):
            info = os.lstat(path)
            if stat.S_ISREG(info.st_mode) and now - info.st_mtime > FORGOTTEN:
                yield Removal("leftover", path, info.st_blocks * 512)


def _orphans(store: Store, config: Config, now: float) -> Iterator[Removal]:
    """What no store has, nor anybody is making there: stripes are every store's."""
    stores = [store, *Stores.of(config)]
    if not all((other.folder / names.SNAPSHOTS).is_dir() for other in stores):
        return  # one may not be mounted now, and its pieces are no orphans
    for stripe in store.stripes:
        drafts = [(name, name.removeprefix(_DRAFT)) for name in _listed(stripe)]
        parts = [(f"{names.SNAPSHOTS}/{id}", id) for id in _listed(stripe / names.SNAPSHOTS)]
        for name, id in chain([(n, i) for n, i in drafts if n != i], parts):
            path = stripe / name
            if not names.is_id(id) or any(_has(store, id) for store in stores):
                continue
            if now - touched(path) > FORGOTTEN:
                yield Removal("orphan", path, size_of(path))


def _has(store: Store, id: str) -> bool:
    return os.path.lexists(store.path_of(id)) or os.path.lexists(store.folder / f"{_DRAFT}{id}")


def _remove_unused(path: Path) -> None:
    """Remove what is no snapshot, unless somebody holds it."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        lock = hold(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError:
        raise FailedPrecondition(f"{path} is in use", hint="try again when that is over") from None
    try:
        remove_folder(str(path))
    finally:
        os.close(lock)


def _busy(path: Path) -> bool:
    """Whether somebody holds the folder now."""
    try:
        os.close(hold(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _arrived(path: Path) -> float:
    # Its own date says when it was made, maybe elsewhere. The document is written here, and never
    # again; the folder's own time changes with every mark.
    for place in (path / CONFIG, path):
        try:
            return os.lstat(place).st_mtime
        except OSError:
            continue
    return 0.0


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
