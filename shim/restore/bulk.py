"""Where the bulk of memory comes from in one restore: from us, read ahead, or from CRIU.

An engine is started when the pod's sandbox is made, and told at once which snapshot the pod names:
`ReadAhead` begins to read then, long before there is a container. `Memory` is what the steps of
the restore see of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shim.budget import GIB
from shim.config import Config
from shim.restore.memory import Filling, Progress, filling_of
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.cuda import CudaProcess
from shim.snapshot.index import Index
from shim.snapshot.policy import check_namespace
from shim.snapshot.store import Snapshot, Stores
from shim.snapshot.tree import open_directory
from shim.timeline import Timeline

NO_INDEX = "the images have no index: `thaw index` makes one"
NO_INDEX_IN_SNAPSHOT = "the snapshot has no index: it has to be made again"
SWITCHED_OFF = "restore.engine is criu"


class Memory:
    """The bulk of memory in one restore. Without a filling CRIU brings it, for a `reason`."""

    def __init__(
        self,
        filling: Filling | None,
        reason: str = "",
        checking: threading.Thread | None = None,
    ) -> None:
        self.filling = filling
        self.reason = reason
        self._checking = checking  # who looks at its files already
        self._timeline = Timeline()
        self._filled: Progress | None = None

    @property
    def index(self) -> Index | None:
        """The index that is used."""
        found = self.filling.index if self.filling is not None else None
        return found if isinstance(found, Index) else None

    def check_files(self) -> None:
        """Raise Unfit unless all that CRIU will read is what it was."""
        if self._checking is not None:
            self._checking.join()
        if self.index is not None:
            self.index.check_files()

    def read_ahead(self) -> None:
        """Begin to read, if that has not begun yet."""
        if self.filling is not None:
            self.filling.prefetch()

    def hurry(self) -> None:
        """Read nothing any longer that is cached; what is not is read on."""
        if self.filling is not None:
            self.filling.hurry()

    def fill(self, init: int) -> None:
        """Write what CRIU has left out into the processes of `init`'s tree, and verify it."""
        if self.filling is not None:
            with self._timeline.span("fill"):
                self._filled = self.filling.fill(init)

    def report(self) -> dict[str, str]:
        """Words for the log: which engine, and how much how fast, or why not ours."""
        if self._filled is None:
            return {"memory": "criu", "because": self.reason}
        seconds = self._timeline.seconds("fill")
        gib = self._filled.total / GIB
        return {
            "memory": "native",
            "gib": f"{gib:.3f}",
            "fill": f"{seconds:.3f}",
            "ahead": f"{self._filled.peak / GIB:.3f}",
        }

    def close(self) -> None:
        """Give buffers, threads and files back."""
        if self.filling is not None:
            self.filling.close()


class ReadAhead:
    """What this process has begun to read before it was told of a container; nothing at first."""

    def __init__(self) -> None:
        self._filling: Filling | None = None
        # Held open, so that no other folder can get its inode number.
        self._folder = -1
        self._checking: threading.Thread | None = None
        self._oom_score = ""

    def begin(
        self,
        request: Mapping[str, Any],
        opened: Callable[[Config, SnapshotConfig, Snapshot], None] = lambda *_: None,
    ) -> None:
        """Begin with the snapshot that is named; what is wrong with it, the restore will say.

        `opened` is told what snapshot it is, once it is known that the pod may have it.
        """
        config = Config(request["config"])
        shared_by = max(1, int(request.get("shared_by", 1)))
        memory = None
        try:
            self._volunteer()
            snapshot = Stores.of(config).open(request["name"])
            made_in, by = snapshot.config.origin.namespace, snapshot.config.maker.by
            live = request.get("namespace", "")
            check_namespace(config, made_in, live, snapshot.shared, by)
            opened(config, snapshot.config, snapshot)
            memory = self.take(
                snapshot.index,
                snapshot.criu,
                config,
                shared_by,
                snapshot.pages,
                snapshot.config.gpu.processes,
            )
            memory.read_ahead()
            self._checking = threading.Thread(target=_check, args=(memory,), daemon=True)
            self._checking.start()
            if memory.filling is not None:
                self._folder = open_directory(snapshot.index)
                self._filling = memory.filling
        except Exception:  # noqa: BLE001 - none of it matters before there is a container
            if memory is not None:
                memory.close()

    def take(
        self,
        folder: Path,
        images: Path,
        config: Config,
        shared_by: int = 1,
        pages: Sequence[Path] | None = None,
        staging: Sequence[CudaProcess] = (),
    ) -> Memory:
        """The memory for a restore from the index in `folder`: what was begun, or a new one.

        `shared_by` processes share the budget; `pages` as of Index.open, for a snapshot; `staging`
        as of Filling. Raises Unfit if the index is damaged.
        """
        begun = self._begun(folder)
        if begun is not None:
            return Memory(begun, checking=self._checking)
        if config.text("restore.engine") != "native":
            return Memory(None, SWITCHED_OFF)
        if not folder.is_dir():
            return Memory(None, NO_INDEX if pages is None else NO_INDEX_IN_SNAPSHOT)
        index = Index.open(folder, images, pages)
        if index.reason:
            return Memory(None, index.reason)
        return Memory(filling_of(index, config, shared_by, staging))

    def called(self) -> None:
        """A container has come: from here on the kernel spares us as it spares the shim.

        What time there was is over, so nothing is read any longer that is cached.
        """
        if self._filling is not None:
            self._filling.hurry()
        if self._oom_score:
            _write_oom_score(self._oom_score)

    def _volunteer(self) -> None:
        """Be killed before any worker while all we do is to save time."""
        with open(_OOM_SCORE) as file:
            self._oom_score = file.read()
        _write_oom_score(str(max(_FIRST_TO_GO, int(self._oom_score))))

    def _begun(self, folder: Path) -> Filling | None:
        """What was begun, if it is the index that is in `folder` now."""
        begun, self._filling = self._filling, None
        held, self._folder = self._folder, -1
        if begun is None:
            return None
        try:
            if begun.index.folder == folder and _same(held, folder):
                return begun
        finally:
            os.close(held)
        begun.close()  # of another snapshot, or of one that had this name
        return None


def _check(memory: Memory) -> None:
    """Read what CRIU will: it is in the page cache then, and need not be looked at again."""
    with suppress(Exception):  # whoever needs it will see
        memory.check_files()


_OOM_SCORE = "/proc/self/oom_score_adj"
_FIRST_TO_GO = 900


def _write_oom_score(score: str) -> None:
    try:
        with open(_OOM_SCORE, "w") as file:
            file.write(score)
    except OSError:
        pass  # not allowed to: then as it is


def _same(held: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), os.stat(folder, follow_symlinks=False))
    except OSError:
        return False
