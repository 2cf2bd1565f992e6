"""What the holder before this one has left in the cache: taken up again, as far as it is whole.

Records say where the chunks lie, and their bytes are verified; what no record has is free. A
snapshot that is no longer where it was is let go.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from shim import log
from shim._native import ffi, lib
from shim.cache import records
from shim.cache.records import Extent, Record
from shim.cache.segments import Segment
from shim.cache.store import Store
from shim.errors import FailedPrecondition, NotFound


def load(store: Store, threads: int) -> None:
    """Take up what there is; `store` is new. What is of no use is removed."""
    for path in sorted(store.segments_folder.iterdir()):
        try:
            segment = Segment.open(path, int(path.name))
            store.segments[segment.number] = segment
        except (OSError, ValueError) as error:
            _remove(path, error)
    with ThreadPoolExecutor(threads) as pool:
        for used, path in sorted(_dated(store.records_folder), reverse=True):
            try:
                record = records.parse(path.read_bytes())
                _check(store, record, path, pool)
                store.adopt(record, used)
            except (OSError, ValueError) as error:
                _remove(path, error)
    store.shrink()
    store.pin_rest()


def sweep(store: Store) -> None:
    """Let go of snapshots that are not there any more, unless they are being copied."""
    with store.lock:
        paths = {held.record.key: held.record.path for held in store.held.values()}
    for key in [key for key, path in paths.items() if not os.path.lexists(path)]:
        with suppress(NotFound, FailedPrecondition):  # then the next time
            store.drop(key)


def _dated(folder: Path) -> list[tuple[float, Path]]:
    return [(path.stat().st_mtime, path) for path in folder.iterdir()]


def _check(store: Store, record: Record, path: Path, pool: ThreadPoolExecutor) -> None:
    """Whether its chunks are what they were. Raises ValueError."""
    if path.name != record.key:
        raise ValueError("it is another's")
    if not os.path.lexists(record.path):
        raise ValueError(f"{record.path} is not there any more")
    new = [
        extent
        for name, extent in zip(record.names, records.listed(record.extents), strict=True)
        if name not in store.chunks  # those are good
    ]
    if not all(pool.map(lambda extent: _is_good(store, extent), new)):
        raise ValueError("its bytes are not what they were")


def _is_good(store: Store, extent: Extent) -> bool:
    segment = store.segments.get(extent.source)
    if segment is None or extent.offset + extent.length > segment.size:
        return False
    with segment.view(extent.offset, extent.length) as view:
        found = lib.thaw_crc32c(0, ffi.from_buffer("char[]", view), extent.length)
    return found == extent.checksum


def _remove(path: Path, error: Exception) -> None:
    log.warning("something in the cache is of no use", path=path, reason=str(error))
    path.unlink(missing_ok=True)
