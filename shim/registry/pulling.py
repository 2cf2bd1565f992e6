"""From a registry into a store.

A pull is held by a lock as long as its process lives. What a killed one has left is gone on with by
the next pull of the same artifact, or removed once it is old: see remains.py.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from shim import audit, names
from shim.config import Config
from shim.errors import AlreadyExists, InvalidArgument, StoreFull, ThawError
from shim.reference import Reference, check_name
from shim.registry.attempts import failure, persist
from shim.registry.contentstore import NAMESPACE, ContentStore
from shim.registry.failures import Notes
from shim.registry.gathering import LAYOUT, Gathering, Sources
from shim.registry.progress import Halt, Progress
from shim.registry.remains import PULL, discard, forget, held
from shim.registry.repository import Repository
from shim.snapshot import artifact, retention
from shim.snapshot.artifact import Manifest
from shim.snapshot.snapshot import check_owner
from shim.snapshot.store import Store
from shim.snapshot.writing import is_full, no_room, writing

_POD = "pod"  # begins who a pull is for that no person asks for, nor looks at


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
    log: one that begins with "pod" is refused for a while after a failure, and afterwards the store
    is brought within its limits. Raises NoSuchSnapshot, RegistryFailed, Unfit, Damaged, StoreFull,
    FailedPrecondition, AlreadyExists, Cancelled. What was fetched is kept for the next attempt,
    unless it is damaged or the disk is full.
    """
    if not reference.remote:
        raise InvalidArgument(
            f"{reference.text} is in no registry", hint="pull needs REGISTRY/REPOSITORY:TAG"
        )
    pod = who.startswith(_POD)
    work = _Pull(store, reference, config, progress or Progress(), Halt(cancelled), pod)
    if name:
        work.also(check_name(name), replace)
    told = {"who": who, "name": reference.text}
    try:
        with work.connected(containerd, namespace):
            id = work.run()
    except (ThawError, OSError) as error:
        audit.record(config, "pull", **told, digest=work.digest, **failure(error))
        raise
    audit.record(config, "pull", **told, digest=work.digest, id=id, outcome="done")
    if pod:
        retention.apply(store, config)
    return id


class _Pull:
    """One pull; see pull()."""

    def __init__(
        self,
        store: Store,
        reference: Reference,
        config: Config,
        progress: Progress,
        halt: Halt,
        pod: bool = False,
    ) -> None:
        self.digest = ""
        self._store = store
        self._reference = reference
        self._config = config
        self._progress = progress
        self._halt = halt
        self._pod = pod
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
        with self._noted(self._reference.text):
            raw, manifest = self._asked()
        id = self._here()
        if not id:
            place = f"{self._reference.registry}/{self._reference.repository}"
            with self._noted(f"{place}@{self.digest}"):
                id = self._fetched(raw, manifest)
        for name, replace in self._names.items():
            if names.read_id(f"{self._store.folder}/{names.NAMES}/{name}") != id:
                self._store.tag(name, id, replace)
        return id

    @contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        """Remember for the next pod that it fails, or refuse what has just failed for another."""
        notes = Notes(self._store.folder, what)
        if self._pod:
            notes.refuse()
        else:
            notes.clear()
        try:
            yield
        except ThawError as error:
            if self._pod:
                notes.add(error)
            raise
        notes.clear()

    def _asked(self) -> tuple[bytes, Manifest]:
        raw = self._manifest()
        manifest = Manifest.parse(raw)
        self.digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        return raw, manifest

    def _fetched(self, raw: bytes, manifest: Manifest) -> str:
        id = ""
        while not id:
            with self._alone() as folder:
                id = self._here()  # somebody else may have finished it meanwhile
                if folder and not id:
                    id = self._complete(folder, raw, manifest)
        return id

    def _manifest(self) -> bytes:
        content = self._sources.content
        found = content.manifest(self._reference) if content else None
        self._sources.confirmed = found is not None
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
        told: list[str] = []

        def wait() -> None:
            if not told:
                told.append("another process pulls the same: waiting for its end")
                self._progress.note(told[0])
            self._halt.sleep(0.1)

        with held(folder, wait) as there:
            yield folder if there else None

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
            discard(folder)  # or it would keep others from the disk, too
            raise
        except ThawError as error:
            if not is_full(error):
                raise
            discard(folder)
            raise no_room(self._store.folder) from error
        discard(folder)
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
