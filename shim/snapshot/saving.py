"""save.c for Python: bulk memory into files, or out of files, and the extents of it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from shim._native import ffi, lib
from shim.native import check

if TYPE_CHECKING:
    from shim._native import _CData

SIZE = 32  # bytes of struct thaw_run, and of struct thaw_extent
MEMORY = 4  # stage of a failure: a task's memory could not be read
_OWN = 5


class SaveFailed(OSError):
    """A read or write failed; `stage` is that of struct thaw_failure (native/thaw.h)."""

    def __init__(self, error: int, stage: int, where: str) -> None:
        super().__init__(error, f"{where}: {os.strerror(error)}")
        self.stage = stage


class Saving:
    """A thaw_save that is under way; what is not done when it is closed is given up.

    After a failure, too, its threads may use tasks and descriptors until it is closed.

    `runs` is an array of struct thaw_run, `files` are names and descriptors, which stay open as
    long as this is. With `pids` the bytes are copied from the tasks to the files, and `budget` says
    how many bytes may be read and not yet written.
    """

    def __init__(
        self,
        runs: bytes,
        files: Sequence[tuple[str, int]],
        pids: Sequence[int] = (),
        threads: int = 0,
        budget: int = 0,
    ) -> None:
        self._runs = ffi.from_buffer("struct thaw_run[]", runs)
        self._files = files
        save = ffi.new("struct thaw_save **")
        result = lib.thaw_save_start(
            ffi.new("int[]", [fd for _, fd in files]),
            len(files),
            self._runs,
            len(runs) // SIZE,
            ffi.new("int[]", list(pids)) if pids else ffi.NULL,
            len(pids),
            threads,
            budget,
            save,
        )
        check(result, "cannot begin to save memory")
        self._began(save[0])

    def _began(self, save: _CData) -> None:
        self._save = save
        self._lock = threading.Lock()  # of closing, against `cancel`

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_read(self) -> None:
        """Wait until the tasks are needed no longer. Raises SaveFailed."""
        self._wait(written=False)

    def finish(self) -> bytes:
        """Wait until all is done: the extents, an array of struct. Raises SaveFailed."""
        self._wait(written=True)
        count = ffi.new("size_t *")
        found = lib.thaw_save_extents(self._save, count)
        return bytes(ffi.buffer(found, count[0] * SIZE)) if count[0] else b""

    def cancel(self) -> None:
        """Make it end soon, from any thread: who waits is told so (SaveFailed, ECANCELED)."""
        with self._lock:
            if self._save:
                lib.thaw_save_cancel(self._save)

    def _wait(self, written: bool) -> None:
        if not self._save:
            raise SaveFailed(errno.ECANCELED, _OWN, "memory")
        failure = ffi.new("struct thaw_failure *")
        if lib.thaw_save_wait(self._save, written, failure) == 0:
            return
        raise self._failure(failure)

    def _failure(self, failure: _CData) -> Exception:
        return SaveFailed(failure.error, failure.stage, self._where(failure.place))

    def _where(self, place: int) -> str:
        """The run with that number, in words."""
        if place >= len(self._runs):
            return "memory"
        run = self._runs[place]
        name = self._files[run.source][0] if run.source < len(self._files) else ""
        return f"{name}, {run.length} bytes at {run.offset}, {run.address:#x} in memory"

    def close(self) -> None:
        """Stop what is under way, and give everything back. Nobody may be waiting then."""
        with self._lock:
            save, self._save = self._save, ffi.NULL
        lib.thaw_save_close(save)
