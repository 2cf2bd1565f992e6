"""How one blob gets here: over several attempts, from wherever it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from shim.errors import Damaged
from shim.registry.attempts import Attempts
from shim.registry.partial import Partial
from shim.registry.progress import Halt, Progress
from shim.registry.transport import Interrupted


class Source(Protocol):
    """What has blobs."""

    def blob(
        self, digest: str, size: int, start: int
    ) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
        """The bytes of a blob, and where they begin: at `start` or before. May be Interrupted."""


class Fetch:
    """One blob of `size` bytes on its way into the folder `blobs`."""

    def __init__(self, blobs: Path, digest: str, size: int, halt: Halt, progress: Progress) -> None:
        self._blobs = blobs
        self._digest = digest
        self._size = size
        self._halt = halt
        self._progress = progress

    def run(self, source: Source) -> None:
        """Fetch it. Raises Damaged, RegistryFailed, Cancelled; OSError if it cannot be written."""
        partial = Partial(self._blobs, self._digest, self._size)
        try:
            partial.resume(self._looked_at)
            old = partial.position
            self._complete(partial, source)
            try:
                partial.finish()
            except Damaged:
                if not old:
                    raise
                # It may be what an earlier process left, or a crash, that is wrong: once from new.
                self._progress.advance(-self._size)
                partial.close()
                partial = Partial(self._blobs, self._digest, self._size)
                self._complete(partial, source)
                partial.finish()
        finally:
            partial.close()

    def _looked_at(self, count: int) -> None:
        self._halt.check()
        self._progress.advance(count)

    def _complete(self, partial: Partial, source: Source) -> None:
        attempts = Attempts(f"blob {self._digest}", self._halt, self._progress)
        try:
            while partial.position < self._size:
                try:
                    self._go_on(partial, source, attempts)
                except Interrupted as error:
                    attempts.failed(error)
        finally:
            partial.keep()

    def _go_on(self, partial: Partial, source: Source, attempts: Attempts) -> None:
        with source.blob(self._digest, self._size, partial.position) as (first, blocks):
            known = partial.position - first  # bytes that come again
            for block in blocks:
                new = block[known:] if known else block
                known -= min(known, len(block))
                partial.write(new)
                self._progress.advance(len(new))
                attempts.progressed(len(block), len(new))
        if partial.position < self._size:
            raise Interrupted(f"connection lost after {partial.position} of {self._size} bytes")
