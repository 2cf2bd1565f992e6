"""All checksums of a snapshot: its files', its extents' and, once it is sealed, its blobs'.

Pages that are left to CRIU are in the index a second time, under a checksum of their own, but for
pieces that CRIU reads as they are: of these the index has the checksum. What other pieces have of
them is under none but the blobs'; only restores by CRIU alone read it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shim.config import Config
from shim.errors import Damaged, RestoreFailed, ThawError, Unfit
from shim.gpu.memory.index import Stored, stored
from shim.restore.memory import Filling, filling_of
from shim.snapshot.artifact import blobs_of, hash_blobs, manifest_of
from shim.snapshot.config import DAMAGED, File
from shim.snapshot.index import Index
from shim.snapshot.snapshot import Snapshot, check_whole, checksum

_TURN = 0.2  # seconds between two looks at the progress of a fill

Progress = Callable[[int], None]


@dataclass
class Verdict:
    """What was found. `faults` are sentences that name the file, or the extent; none is good."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what could not be looked at, and why
    bytes: int = 0  # that were read; blobs are read once more than the files that they are

    def refuse(self) -> None:
        """Raise Damaged if there is a fault."""
        if self.faults:
            raise Damaged(self.faults[0], hint=DAMAGED)


def verify(
    snapshot: Snapshot, config: Config, threads: int = 0, progress: Progress | None = None
) -> Verdict:
    """Read all of a snapshot. `progress` is told how many more bytes of work() are done.

    Whoever calls it holds the snapshot. `threads`: 0 for one per processor.
    """
    verdict = Verdict()
    tell = _Counter(verdict, progress)
    with _noting(verdict):
        check_whole(snapshot, sums=False)
    # First what brings the files into the page cache: most of them are blobs, too, and the rest is
    # then done as fast as memory is read. But what it finds says less about what is damaged.
    blobs = Verdict()
    with _noting(blobs):
        if snapshot.digest:
            blobs.faults += _blobs(snapshot, threads, tell)
    verdict.faults += _files(_listed(snapshot), threads, tell)
    if threads:
        config = config.overridden({"restore.threads": threads})
    with _noting(verdict):
        _extents(snapshot, config, verdict, tell)
    with _noting(verdict):
        memory = stored(snapshot)
        if memory is not None:
            _filled(snapshot, memory, config, tell)
    verdict.faults = list(dict.fromkeys(verdict.faults + blobs.faults))
    return verdict


def work(snapshot: Snapshot) -> int:
    """How many bytes verify() reads, if nothing is missing."""
    total = sum(file.size for _, file in _listed(snapshot))
    try:
        index = _index(snapshot)
        total += index.bytes if index is not None else 0
        memory = stored(snapshot)
        total += memory.bytes if memory is not None else 0
        if snapshot.digest:
            total += sum(blob.size for blob in manifest_of(snapshot)[1].blobs)
    except (Unfit, OSError):
        pass  # verify() says it
    return total


class _Counter:
    """Counts what is read, and passes it on. Any thread may call it."""

    def __init__(self, verdict: Verdict, progress: Progress | None) -> None:
        self._verdict = verdict
        self._progress = progress
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._verdict.bytes += count
            if self._progress is not None:
                self._progress(count)


@contextmanager
def _noting(verdict: Verdict) -> Iterator[None]:
    """What stops one kind of check is a fault, and the others go on."""
    try:
        yield
    except (Unfit, RestoreFailed) as error:
        verdict.faults.append(error.message)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        verdict.faults.append(f"{where}{error.strerror or error}")


def _listed(snapshot: Snapshot) -> list[tuple[Path, File]]:
    """The files that the config, or the index, has checksums of; not those that are blobs, too."""
    wanted = [(snapshot.file(name), file) for name, file in snapshot.config.files.items()]
    try:
        index = None if snapshot.digest else _index(snapshot)
        if index is not None:
            wanted += [(path, File(size, crc)) for path, (size, crc) in index.whole_pieces()]
    except (Unfit, OSError):
        pass  # verify() says it
    return wanted


def _files(wanted: list[tuple[Path, File]], threads: int, tell: Progress) -> list[str]:
    """The faults of files with checksums."""

    def look(item: tuple[Path, File]) -> str:
        fault = _fault_of(*item)
        tell(item[1].size)
        return fault

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        try:
            return [fault for fault in pool.map(look, wanted) if fault]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _fault_of(path: Path, wanted: File) -> str:
    try:
        found = checksum(path)
    except FileNotFoundError:
        return f"{path} is missing, it had {wanted.size} bytes"
    except (ThawError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return f"cannot read {path}: {reason}"
    if found.size != wanted.size:
        return f"{path} has {found.size} bytes, it had {wanted.size}"
    return "" if found == wanted else f"{path} has another checksum"


def _index(snapshot: Snapshot) -> Index | None:
    """The index; None if it was made without one."""
    if not any(name.startswith("index/") for name in snapshot.config.files):
        return None
    return Index.open(snapshot.index, snapshot.criu, snapshot.pages)


def _extents(snapshot: Snapshot, config: Config, verdict: Verdict, tell: Progress) -> None:
    index = _index(snapshot)
    if index is None or index.reason:
        if snapshot.config.pages and not snapshot.digest:
            why = index.reason if index is not None else "there is no index"
            verdict.notes.append(f"pages have no checksums before it is sealed: {why}")
        return
    _filled(snapshot, index, config, tell)


def _filled(snapshot: Snapshot, index: Index | Stored, config: Config, tell: Progress) -> None:
    """Read what would be filled, and compare it."""
    with filling_of(index, config) as filling, _watched(filling, tell):
        try:
            filling.verify()
        except (Damaged, RestoreFailed) as error:
            raise Damaged(f"{snapshot.path}: {error.message}", hint=DAMAGED) from error


@contextmanager
def _watched(filling: Filling, tell: Progress) -> Iterator[None]:
    """Tell how far it is, until it has ended."""
    over = threading.Event()
    done = 0

    def look() -> None:
        nonlocal done
        now = filling.progress().done
        tell(now - done)
        done = now

    def watch() -> None:
        while not over.wait(_TURN):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        look()


def _blobs(snapshot: Snapshot, threads: int, tell: Progress) -> list[str]:
    """The faults of the blobs: their SHA-256 is their name."""
    _, manifest = manifest_of(snapshot)
    paths = blobs_of(snapshot, manifest)
    digests = hash_blobs(list(paths.values()), threads, tell)
    return [
        f"{path} is not the blob {wanted}"
        for (wanted, path), found in zip(paths.items(), digests, strict=True)
        if wanted != f"sha256:{found}"
    ]
