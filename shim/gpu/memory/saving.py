"""Copying regions of GPU memory into the pieces of a snapshot, while something else is done.

What is all zeros is found on the GPU and not even copied; the rest lies in the pieces without gaps,
dealt over the folders as the pieces of other memory are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from shim.errors import CheckpointFailed, GpuFailed
from shim.gpu.memory.device import BUDGET, CopyOut, Region, laid_out
from shim.lean.threads import at_once
from shim.snapshot.layout import Run, by_turns
from shim.snapshot.pieces import GPU_FILE, Pieces, created, name_of
from shim.timeline import Timeline

_SCANNERS = 4  # regions that are looked at at the same time


class Saved(NamedTuple):
    """What became of it: struct thaw_extent[], and bytes that are stored, of how many."""

    extents: bytes
    stored: int
    total: int


class Saving:
    """A copy that is under way; closing it gives it up. The regions must stay until then.

    `budget`: bytes that may be read and not yet written.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        folders: Sequence[Path],
        timeline: Timeline,
        budget: int = BUDGET,
    ) -> None:
        self._regions = regions
        self._pieces = Pieces(folders)
        self._timeline = timeline
        self._budget = budget
        self._open = ExitStack()
        self._made: list[Path] = []
        self._lock = threading.Lock()  # of the next two, against `cancel`
        self._copy: CopyOut | None = None
        self._cancelled = False
        self._failure: BaseException | None = None
        self._stored = 0
        self._total = sum(region.size for region in regions)
        self._kept = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_read(self) -> None:
        """Wait until the regions may be written to again. Raises CheckpointFailed."""
        self._thread.join()
        with _failing():
            if self._failure is not None:
                raise self._failure

    def finish(self) -> Saved:
        """Wait until all is written. Raises CheckpointFailed."""
        self.wait_read()
        with _failing():
            extents = self._copy.finish() if self._copy is not None else b""
        self._kept = True
        self.close()
        return Saved(extents, self._stored, self._total)

    def cancel(self) -> None:
        """Nobody wants it any more: what is under way ends soon."""
        self._stop()
        if self._failure is None:
            self._failure = _given_up()

    def close(self) -> None:
        """Stop what is under way. Files stay only if all was written."""
        self._stop()
        self._open.close()
        if not self._kept:
            for path in self._made:
                path.unlink(missing_ok=True)

    def _stop(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._copy is not None:
                self._copy.cancel()
        self._thread.join()
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def _read(self) -> None:
        """A thread that waits for each step, so that the spans are of these and of nothing else."""
        try:
            with self._timeline.span("scan"):
                scans = at_once(self._scan, self._regions, _SCANNERS)
            runs, sizes = laid_out(scans)
            self._stored = sum(sizes)
            files = [self._created(number, size) for number, size in enumerate(sizes)]
            disks = [self._pieces.place(number) for number in range(len(sizes))]
            if runs:
                with self._timeline.span("copy"):
                    self._begun(by_turns(runs, disks), files).wait_read()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._failure = _given_up() if self._cancelled else error

    def _begun(self, runs: Iterable[Run], files: Sequence[tuple[str, int]]) -> CopyOut:
        with self._lock:
            if self._cancelled:
                raise _given_up()
            self._copy = CopyOut(self._regions, runs, files, budget=self._budget)
            return self._copy

    def _scan(self, region: Region) -> bytes:
        if self._cancelled:
            raise _given_up()
        return region.scan()

    def _created(self, number: int, size: int) -> tuple[str, int]:
        name = name_of(GPU_FILE, number)
        path = self._pieces.place(number) / name
        with suppress(FileNotFoundError):  # of a dump in another way, or of one that was killed
            path.unlink()
        fd = self._open.enter_context(created(path, size))
        self._made.append(path)
        return name, fd


def _given_up() -> CheckpointFailed:
    return CheckpointFailed("GPU memory was not saved", hint="it was given up")


class _failing:  # noqa: N801 - reads as what it is: a context
    """What goes wrong within is a failure of the checkpoint."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, GpuFailed | OSError):
            what = error.message if isinstance(error, GpuFailed) else error
            raise CheckpointFailed(
                f"cannot save GPU memory: {what}", hint="the container runs on"
            ) from error
