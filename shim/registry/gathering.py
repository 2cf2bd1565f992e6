"""All blobs of one artifact in one folder: fetched, or linked from the snapshots that have them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from shim.errors import RegistryFailed, Unfit
from shim.registry.attempts import persist
from shim.registry.contentstore import ContentStore
from shim.registry.fetching import Fetch
from shim.registry.partial import SUFFIX, copy_of
from shim.registry.progress import Halt, Progress
from shim.registry.repository import Repository
from shim.snapshot.artifact import Descriptor, Manifest
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.manifest import SKELETON
from shim.snapshot.store import Store
from shim.snapshot.writing import no_room

LAYOUT = Path("blobs/sha256")
_SPARE = 1 << 20  # bytes for names, folders and what else comes with a snapshot
# What a pull leaves free for others, on a file system that may be the node's only one.
_SHARE = 20  # one of so many parts of it
_RESERVE = 10 << 30  # bytes, at most


class Sources:
    """Where blobs come from, the nearest first.

    A manifest that comes from the registry may name any blob in the world. So `confirmed` is false
    then: what others have here is used only if the repository has it, too.
    """

    def __init__(self, store: Store, content: ContentStore | None, repository: Repository) -> None:
        self.store = store
        self.content = content
        self.repository = repository
        self.confirmed = False

    def local(self, wanted: list[Descriptor]) -> dict[str, Path]:
        """Files of other snapshots of the store that should be these blobs, by digest."""
        found: dict[str, Path] = {}
        for id in self.store.ids():
            folder = self.store.path_of(id) / LAYOUT
            for blob in wanted:
                if blob.digest not in found and _is_file(folder / blob.hex, blob.size):
                    found[blob.digest] = folder / blob.hex
        return found

    def abort(self) -> None:
        """End what is being read in other threads."""
        self.repository.abort()
        if self.content:
            self.content.close()


class Gathering:
    """The blobs of `manifest` on their way into the folder `blobs`."""

    def __init__(
        self, blobs: Path, manifest: Manifest, sources: Sources, halt: Halt, progress: Progress
    ) -> None:
        self._blobs = blobs
        self._manifest = manifest
        self._sources = sources
        self._halt = halt
        self._progress = progress
        self._wanted = {d.digest: d for d in (manifest.config, *manifest.layers)}
        self._local: dict[str, Path] = {}

    def run(self, transfers: int) -> None:
        """Fetch what is missing, some of it at the same time.

        Raises RegistryFailed, Damaged, Unfit, StoreFull, Cancelled; OSError if the disk fails.
        """
        missing = [d for d in self._wanted.values() if not self._has(d)]
        there = sum(d.size for d in self._wanted.values()) - sum(d.size for d in missing)
        self._progress.begin("pull", sum(d.size for d in self._wanted.values()))
        self._progress.advance(there)
        # The config's file says when its snapshot has come here, so each has one of its own.
        self._local = self._sources.local([d for d in missing if d != self._manifest.config])
        skeletons = [d.size for d in self._manifest.layers if d.title == SKELETON]
        self._check_room(missing, _SPARE + sum(skeletons))  # which will be unpacked besides
        if self._manifest.config in missing:
            missing.remove(self._manifest.config)
            each(self._fetch, [self._manifest.config], 1, self._halt, self._sources.abort)
        # What this version cannot restore is not worth the rest of it.
        SnapshotConfig.from_json(self._path(self._manifest.config).read_bytes(), "its config")
        each(self._fetch, missing, transfers, self._halt, self._sources.abort)

    def link(self, folder: Path) -> None:
        """Give all blobs a name in another folder of the same disk; they come now."""
        os.utime(self._path(self._manifest.config))
        for descriptor in self._wanted.values():
            path = self._path(descriptor)
            os.link(path, folder / path.name, follow_symlinks=False)

    def _path(self, descriptor: Descriptor, suffix: str = "") -> Path:
        return self._blobs / (descriptor.digest.removeprefix("sha256:") + suffix)

    def _has(self, descriptor: Descriptor) -> bool:
        path = self._path(descriptor)
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            return False
        if stat.S_ISREG(info.st_mode) and info.st_size == descriptor.size:
            return True
        path.unlink()
        return False

    def _fetch(self, wanted: Descriptor) -> None:
        digest, size = wanted.digest, wanted.size
        other = self._local.pop(digest, None)
        content = self._sources.content
        if content and not content.has(digest, size):
            content = None
        allowed = bool(other or content) and self._allowed(digest)
        check = self._halt.check
        if other and allowed and copy_of(other, self._blobs, digest, size, check):
            self._path(wanted, SUFFIX).unlink(missing_ok=True)
            self._progress.advance(size)
            return
        if other:
            self._check_room([wanted])  # it was thought to need none
        fetch = Fetch(self._blobs, digest, size, self._halt, self._progress)
        if content and allowed:
            try:
                fetch.run(content)
                return
            except (RegistryFailed, Unfit) as error:
                self._progress.note(f"not from containerd: {error}")
        fetch.run(self._sources.repository)

    def _allowed(self, digest: str) -> bool:
        """Whether a blob that is on this node already can be taken for one of this repository."""
        if self._sources.confirmed:
            return True
        has = self._sources.repository.has_blob
        try:
            return persist(f"blob {digest}", self._halt, self._progress, lambda: has(digest))
        except RegistryFailed as error:
            self._progress.note(str(error))
            return False

    def _check_room(self, missing: list[Descriptor], needed: int = 0) -> None:
        """Raise StoreFull if there is no room, as far as that can be known (holes cannot)."""
        for blob in missing:
            if blob.digest not in self._local:
                needed += max(blob.size - _on_disk(self._path(blob, SUFFIX)), 0)
        room = os.statvfs(self._blobs)
        reserve = min(room.f_blocks * room.f_frsize // _SHARE, _RESERVE)
        if needed + reserve > room.f_bavail * room.f_frsize:
            cause = f"{needed >> 20} MiB are needed, and {reserve >> 20} MiB are left to others"
            raise no_room(self._sources.store.folder, cause)


def each(
    do: Callable[[Descriptor], None],
    wanted: list[Descriptor],
    transfers: int,
    halt: Halt,
    abort: Callable[[], None],
) -> None:
    """Do something with each blob, several at a time. The first failure ends all, and is raised."""
    pool = ThreadPoolExecutor(transfers)
    futures = [pool.submit(do, descriptor) for descriptor in wanted]
    try:
        pending = set(futures)
        while pending and not any(map(_failed, futures)):
            halt.check()
            _, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
    finally:
        if not all(future.done() and not _failed(future) for future in futures):
            halt.set()
            abort()
        pool.shutdown(cancel_futures=True)
    errors = [e for f in futures if not f.cancelled() and (e := f.exception()) is not None]
    # Those that were ended by the first failure have only been cancelled.
    for error in sorted(errors, key=lambda e: type(e).__name__ == "Cancelled"):
        raise error


def _failed(future: Future[None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None


def _is_file(path: Path, size: int) -> bool:
    try:
        info = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_size == size


def _on_disk(path: Path) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0
