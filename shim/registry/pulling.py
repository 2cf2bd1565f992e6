"""From a registry into a store.

    STORE/.pull-HEX/blobs/sha256/HEX    a blob of the artifact with that digest, whole
    …/HEX.partial                       one that is under way

A pull is held by a lock as long as its process lives. What a killed one has left is gone on with by
the next pull of the same artifact, or removed once it is old: see forget().
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from shim import audit, names
from shim.config import Config
from shim.errors import AlreadyExists, InvalidArgument, StoreFull, ThawError
from shim.reference import Reference, check_name
from shim.registry.attempts import persist
from shim.registry.contentstore import NAMESPACE, ContentStore
from shim.registry.gathering import LAYOUT, Gathering, Sources
from shim.registry.progress import Halt, Progress
from shim.registry.repository import Repository
from shim.removal import remove_folder
from shim.snapshot import artifact
from shim.snapshot.artifact import Manifest
from shim.snapshot.snapshot import check_owner
from shim.snapshot.store import Store
from shim.snapshot.writing import is_full, no_room, writing

PULL = ".pull-"
KEPT_SECONDS = 7 * 86400.0


def pull(
    store: Store,
    reference: Reference,
    config: Config,
    progress: Progress | None = None,
    *,
    name: str = "",
    replace: bool = False,
    containerd: str = "",
    namespace: str = NAMESPACE,
    cancelled: threading.Event | None = None,
    who: str = "",
) -> str:
    """Bring an artifact into a store, and name it by its reference and `name`: the snapshot's id.

    `containerd` is the address of one that may have it already. `replace` lets `name` stand for
    it even if it stands for another snapshot. `cancelled` ends it early; `who` is for the audit
    log. Raises NoSuchSnapshot, RegistryFailed, Unfit, Damaged, StoreFull, FailedPrecondition,
    AlreadyExists, Cancelled. What was fetched is kept for the next attempt, unless it is damaged or
    the disk is full.
    """
    if not reference.remote:
        raise InvalidArgument(
            f"{reference.text} is in no registry", hint="pull needs REGISTRY/REPOSITORY:TAG"
        )
    work = _Pull(store, reference, config, progress or Progress(), Halt(cancelled))
    if name:
        work.also(check_name(name), replace)
    told = {"who": who, "name": reference.text}
    try:
        with work.connected(containerd, namespace):
            id = work.run()
    except ThawError as error:
        audit.record(config, "pull", **told, digest=work.digest, outcome=error.reason)
        raise
    audit.record(config, "pull", **told, digest=work.digest, id=id, outcome="done")
    return id


def forget(folder: Path, seconds: float = KEPT_SECONDS) -> list[Path]:
    """Remove what pulls into the store `folder` have left that nobody went on with for so long."""
    removed = []
    for path in folder.glob(f"{PULL}*"):
        try:
            lock = _open(path)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - _changed(path) >= seconds:
                remove_folder(str(path))
                removed.append(path)
        except OSError:  # it is under way
            pass
        finally:
            os.close(lock)
    return removed


class _Pull:
    """One pull; see pull()."""

    def __init__(
        self, store: Store, reference: Reference, config: Config, progress: Progress, halt: Halt
    ) -> None:
        self.digest = ""
        self._store = store
        self._reference = reference
        self._config = config
        self._progress = progress
        self._halt = halt
        # A tag stands for what the registry says; a local name is somebody's own. With a digest
        # the registry was not asked about the tag.
        tagged = reference.tag and not reference.digest
        self._names = {reference.file_name: True} if tagged else {}

    def also(self, name: str, replace: bool) -> None:
        """Give the snapshot one more name."""
        self._names[name] = replace

    @contextmanager
    def connected(self, containerd: str, namespace: str) -> Iterator[None]:
        """Have connections to the registry and to a containerd."""
        content = ContentStore(containerd, namespace) if os.path.exists(containerd) else None
        try:
            with closing(Repository(self._reference, self._config)) as repository:
                self._sources = Sources(self._store, content, repository)
                yield
        finally:
            if content:
                content.close()

    def run(self) -> str:
        """Do it: the snapshot's id."""
        raw = self._manifest()
        manifest = Manifest.parse(raw)
        self.digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        id = self._here()
        while not id:
            with self._alone() as folder:
                id = self._here()  # somebody else may have finished it meanwhile
                if folder and not id:
                    id = self._complete(folder, raw, manifest)
        for name, replace in self._names.items():
            if names.read_id(f"{self._store.folder}/{names.NAMES}/{name}") != id:
                self._store.tag(name, id, replace)
        return id

    def _manifest(self) -> bytes:
        content = self._sources.content
        found = content.manifest(self._reference) if content else None
        if found is None:
            what = f"the manifest of {self._reference.text}"
            found = persist(what, self._halt, self._progress, self._sources.repository.manifest)
        return found

    @property
    def _hex(self) -> str:
        return self.digest.removeprefix("sha256:")

    def _here(self) -> str:
        """The id of the snapshot, if the store has it."""
        id = names.read_id(f"{self._store.folder}/{names.DIGESTS}/{self._hex}")
        return id if id and os.path.lexists(self._store.path_of(id)) else ""

    @contextmanager
    def _alone(self) -> Iterator[Path | None]:
        """The folder of this pull, held; None if another process has just finished with it."""
        folder = self._store.folder / f"{PULL}{self._hex}"
        with writing(self._store.folder):
            self._store.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._store.check_owner()
            forget(self._store.folder)
            folder.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = _open(folder)
        except FileNotFoundError:
            yield None
            return
        try:
            self._wait_for(lock)
            yield folder if _is(folder, lock) else None
        finally:
            os.close(lock)

    def _wait_for(self, lock: int) -> None:
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not told:
                    self._progress.note("another process pulls the same: waiting for its end")
                told = True
                self._halt.sleep(0.1)

    def _complete(self, folder: Path, raw: bytes, manifest: Manifest) -> str:
        check_owner(folder)
        self._refuse_taken()
        blobs = folder / LAYOUT
        gathering = Gathering(blobs, manifest, self._sources, self._halt, self._progress)
        try:
            with writing(self._store.folder):
                blobs.mkdir(mode=0o700, parents=True, exist_ok=True)
                gathering.run(int(self._config.number("registry.transfers")))
                id = self._publish(gathering, raw)
        except StoreFull:
            remove_folder(str(folder))  # or it would keep others from the disk, too
            raise
        except ThawError as error:
            if not is_full(error):
                raise
            remove_folder(str(folder))
            raise no_room(self._store.folder) from error
        remove_folder(str(folder))
        return id

    def _publish(self, gathering: Gathering, raw: bytes) -> str:
        with self._store.draft(None) as draft:
            place = draft.path / LAYOUT
            place.mkdir(mode=0o700, parents=True)
            gathering.link(place)
            artifact.lay_out(draft.path, raw)
            draft.publish()
            self._store.note_digest(draft.id, self.digest)
        return draft.id

    def _refuse_taken(self) -> None:
        for name, replace in self._names.items():
            if not replace and self._store.taken(name):
                raise AlreadyExists(
                    f"a snapshot named {name} exists",
                    hint=f"`thaw rm {name}` removes it; see also --replace",
                )


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _is(path: Path, fd: int) -> bool:
    """Whether a path still leads to what was opened there."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _changed(folder: Path) -> float:
    """When something below `folder` was written last, as Unix time."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(os.lstat(path).st_mtime for path in (folder, *files))
