"""GPU memory made and filled anew while CRIU and the driver work, then handed to processes.

Begun as soon as it is known on which GPUs: for a node whose GPUs are just those that the snapshot
needs, with nobody on them, that is when the sandbox is made, for others when the container is.
Reading begins even earlier. A process that has not got all of its memory never gets to use it: its
library holds its GPU work until all processes have theirs.

Where the node's cache has it, its holder makes the memory and fills it: it has a context on the GPU
already, and we need none. Otherwise filling begins with the first region: they are made in the
order in which their bytes come, and those that have none come last.

Any failure is raised where it is waited for; the restore is undone then. Nothing of what was made
is kept.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

from shim.cache.client import Cached, Lost
from shim.errors import GpuFailed, RestoreFailed, ThawError
from shim.gpu.memory.copyin import CopyIn, Source
from shim.gpu.memory.cufile import RING, Direct, NotDirect, Storage
from shim.gpu.memory.device import Memory
from shim.gpu.memory.handing import give, library_of
from shim.gpu.memory.index import Stored
from shim.gpu.memory.library import Library
from shim.gpu.memory.making import MAKERS, Delivered, Making, Shared, Wanted
from shim.gpu.nvml import uuid_bytes
from shim.gpu.processes import all_of, each
from shim.snapshot.cuda import CudaState, GpuRegion
from shim.snapshot.extents import interleaved
from shim.snapshot.pieces import open_source
from shim.timeline import Timeline

GIB = 1 << 30
_ROOM = 10.0  # seconds that memory may stay taken whose holder is dead
_PAUSE = 0.05


class Figures(NamedTuple):
    """What was filled: bytes that came from files or the cache, of how many, in seconds."""

    stored: int
    total: int
    seconds: float
    cached: bool = False  # they came from the node's cache
    direct: bool = False  # cuFile has read them
    refused: str = ""  # why it has not, if it was tried


class Refill:
    """The GPU memory of one snapshot, on its way onto GPUs. Nothing is begun by making one.

    With `cached`, it comes from the node's cache, if it can; else cuFile fills it, if `storage` has
    it; else the engine itself. Raises Damaged or Unfit if that is of no use.
    """

    def __init__(
        self,
        open_memory: Callable[[], Memory],
        stored: Stored,
        state: CudaState,
        cached: Cached | None = None,
        storage: Storage = RING,
    ) -> None:
        self.timeline = Timeline()
        self._open_memory = open_memory
        self._state = state
        self._stored = stored.bytes
        self._cached = cached if stored.count else None
        self._delivered: list[Delivered] = []  # all, if they came from there
        self._lost = False  # they were to come from one who may still have them
        self._direct: Direct | None = None
        self._came_direct = False
        self._refused = ""
        self._kept = ExitStack()
        self._gpus: dict[str, str] = {}
        self._lock = threading.RLock()  # of the three that follow
        self._memory: Memory | None = None
        self._making: Making | None = None
        self._closed = False
        self._order: list[int] = []  # of making the regions, by their numbers
        self._copy: CopyIn | None = None
        self._thread: threading.Thread | None = None
        self._made = threading.Event()
        self._failure: BaseException | None = None
        try:
            sources = []
            for path, blob in zip(stored.paths, stored.sources, strict=True):
                fd = open_source(path, blob.size)
                self._kept.callback(os.close, fd)
                sources.append(Source(blob.name, fd, blob.size))
            extents = interleaved(stored.extents, stored.disks)
            if stored.count:
                self._copy = CopyIn(extents, sources)
                self._direct = storage.direct(extents, sources)
            numbers = array("I", extents)[6::8].tolist() + list(range(len(state.regions)))
            self._order = list(dict.fromkeys(numbers))
        except BaseException:
            self.close()
            raise

    @property
    def gpus(self) -> Mapping[str, str]:
        """On which GPU, by UUID, what was on which is made; empty: it has not begun."""
        return self._gpus

    def prefetch(self) -> None:
        """Begin to read, as far as the buffers go, what is not in the node's cache."""
        if self._copy is None or (self._cached is not None and self._cached.has()):
            return
        if self._direct is not None:
            self._direct.prepare()  # what it shall read is not read twice
        else:
            self._copy.prefetch()

    def begin(self, gpus: Mapping[str, str]) -> None:
        """Make everything and fill it; `gpus`: the UUID that was → that is, of every GPU."""
        assert self._thread is None, "it is begun once"
        self._gpus = dict(gpus)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def made(self) -> None:
        """Wait until all memory has been found on the GPUs. Raises GpuFailed or Unfit if not."""
        self._made.wait()
        if self._failure is not None:
            raise self._failure

    def give(self, pids: Mapping[int, int]) -> None:
        """Hand everything over, and let the processes go on: their pids inside → ours.

        Waits until all is there. Raises Damaged, GpuFailed and RestoreFailed.
        """
        assert self._thread is not None, "it was begun"
        with self.timeline.span("filled"):
            self._thread.join()
            if self._failure is not None:
                raise self._failure
        if self._making is not None:
            self._making.settle()
        with self.timeline.span("give"), ExitStack() as stack:
            libraries = {}
            for inside, pid in pids.items():
                libraries[inside] = stack.enter_context(library_of(pid, inside))
            self._do(libraries, self._give)
            self._do(libraries, lambda _, library: library.open())
        if self._cached is not None and not self._delivered:
            self._cached.offer()

    def figures(self) -> Figures:
        """How much there was, and how long it took to make and fill it: until the last byte."""
        total = sum(region.size for region in self._state.regions)
        seconds = self.timeline.seconds("fill")
        came = (bool(self._delivered), self._came_direct, self._refused)
        return Figures(self._stored, total, seconds, *came)

    def close(self) -> None:
        """Let go of everything: what was handed over stays with whoever got it."""
        with self._lock:
            self._closed = True
            making = self._making
        copy, self._copy = self._copy, None
        if self._cached is not None:
            self._cached.cancel()
        if making is not None:
            making.cancel()
        if self._direct is not None:
            self._direct.cancel()
        if copy is not None and self._thread is not None:
            copy.cancel()
        if self._thread is not None:
            self._thread.join()
        if self._direct is not None:
            self._direct.close()
        if copy is not None:
            copy.close()
        self._let_go()
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        self._kept.close()

    def _run(self) -> None:
        copy = self._copy
        try:
            if not self._from_cache():
                self._by_ourselves(copy)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._failure = error
            self._give_up(copy)
        finally:
            self._made.set()

    def _by_ourselves(self, copy: CopyIn | None) -> None:
        with self.timeline.span("context"):
            memory = self._opened()
            for uuid in self._used():
                memory.use(uuid_bytes(uuid))
        with self.timeline.span("fill"):
            if self._lost:
                self._make_again()
            else:
                self._make()
            if copy is not None and not self._by_cufile():
                self._from_files(copy)
            self._all().wait()

    def _used(self) -> list[str]:
        """The UUIDs of the GPUs that regions are on."""
        return list(dict.fromkeys(self._gpus[region.gpu] for region in self._state.regions))

    def _opened(self) -> Memory:
        """The driver's memory calls, of which a restore from the cache may need none."""
        with self._lock:
            if self._closed:
                raise RestoreFailed("GPU memory is not wanted any more")
            if self._memory is None:
                self._memory = self._open_memory()
            return self._memory

    def _from_files(self, copy: CopyIn) -> None:
        copy.start([region.size for region in self._state.regions], len(self._used()))
        for batch in self._all().batches():
            for number, region in batch:
                copy.add(number, region)
        copy.wait()

    def _from_cache(self) -> bool:
        """Whether all has come from there."""
        if self._cached is None:
            return False
        began = time.monotonic()
        try:
            found = self._cached.fill(self._wanted(), lambda: self._all_made(began))
        except Lost:
            self._lost = True
            return False
        if found is not None:
            self._delivered = found
            self.timeline.note("fill", began)
        return found is not None

    def _by_cufile(self) -> bool:
        """Whether all has come so; if not, there is nothing of it in the regions."""
        if self._direct is None:
            return False
        try:
            self._all().wait()
            self._direct.fill(self._all().regions)
            self._came_direct = True
        except NotDirect as error:
            self._refused = str(error)
            if error.begun:
                self._make_again()  # also what came late, if that can be, is not in these
        return self._came_direct

    def _make_again(self) -> None:
        """Other regions, as somebody may write to these for as long as the driver takes to see
        that he is dead; only then there may be room for others. Raises GpuFailed.
        """
        ends = time.monotonic() + _ROOM
        while True:
            self._let_go()
            try:
                self._make()
                self._all().wait()
            except GpuFailed:
                if time.monotonic() > ends:
                    raise
                time.sleep(_PAUSE)
            else:
                return

    def _make(self) -> None:
        """Begin to make all of them."""
        began = time.monotonic()
        made = lambda: self._all_made(began)  # noqa: E731
        with self._lock:
            memory, wanted = self._opened(), self._wanted()
            self._making = Making(memory, wanted, self._order, makers=MAKERS, made=made)

    def _all_made(self, began: float) -> None:
        self.timeline.note("make", began)
        self._made.set()

    def _all(self) -> Making:
        assert self._making is not None, "it has begun"
        return self._making

    def _wanted(self) -> list[Wanted]:
        return [
            Wanted(uuid_bytes(self._gpus[region.gpu]), region.size, region.rdma)
            for region in self._state.regions
        ]

    def _regions(self) -> Sequence[Shared]:
        """All, by number, once all are there."""
        return self._delivered or self._all().regions

    def _let_go(self) -> None:
        """Of all regions, if nobody copies into them any more."""
        if self._making is not None:
            self._making.close()
        for region in self._delivered:
            region.close()

    def _give_up(self, copy: CopyIn | None) -> None:
        """What was made may be what others wait for, long before somebody asks for the failure."""
        if copy is not None:
            copy.cancel()
            with suppress(ThawError):
                copy.wait()
        self._let_go()

    def _do(self, libraries: Mapping[int, Library], act: Callable[[int, Library], None]) -> None:
        failures = each(lambda inside: act(inside, libraries[inside]), list(libraries))
        if failures:
            raise all_of(failures)

    def _give(self, inside: int, library: Library) -> None:
        give(library, *self._of(inside), self._opened)

    def _of(self, inside: int) -> tuple[Sequence[GpuRegion], Sequence[Shared]]:
        """What a process had, and what it gets."""
        at = 0
        for process in self._state.processes:
            if process.pid == inside:
                return process.regions, self._regions()[at : at + len(process.regions)]
            at += len(process.regions)
        return [], ()
