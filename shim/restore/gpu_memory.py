"""The GPU memory of one restore that does not come by the driver: when it is begun, and where.

It is filled while CRIU and the driver work (gpu/memory/resume.py), on the GPUs that the container
has. These are known once there is a container; before, if the node has no others than those that
the snapshot needs. Then nothing is lost by beginning with the sandbox, as soon as there is room and
nobody has work there: such a GPU may be somebody else's, and our pod may get none.

CRIU does not wait for it (the driver's first context and the making took 0.5 seconds on an H100):
there is a last moment, when all processes are there and none has run, and `ready` is asked then.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from functools import partial

from shim.cache import client
from shim.config import Config
from shim.errors import GpuFailed, ThawError
from shim.gpu import rules
from shim.gpu.memory.cufile import Storage
from shim.gpu.memory.device import Memory
from shim.gpu.memory.index import Stored, stored
from shim.gpu.memory.resume import Refill
from shim.gpu.node import Node
from shim.gpu.nvml import Gpu
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.snapshot import Snapshot

GIB = 1 << 30
_PAUSE = 0.05  # seconds between two looks at a GPU's memory
_LONG_PAUSE = 0.5  # at most, where there is enough and somebody uses it, too: he may stay


class GpuMemory:
    """That of one restore, in the engine's process."""

    def __init__(self, config: Config, snapshot: Snapshot, node: Node) -> None:
        self._snapshot = snapshot
        self._open = partial(Memory.open, config.text("gpu.library"))
        self._node = node
        self._cached = partial(client.of, config)
        self._holder = partial(client.holder, config)
        self._storage = Storage(config.text("gpu.storage"))
        self._at_once = config.text("gpu.begin") == "sandbox"
        self._stored: Stored | None = None
        self._refill: Refill | None = None
        self._enough = threading.Event()  # of trying early
        self._early: threading.Thread | None = None

    def is_of(self, snapshot: Snapshot) -> bool:
        """Whether that is the snapshot that was begun with."""
        return snapshot.path == self._snapshot.path and snapshot.config == self._snapshot.config

    def expect(self) -> None:
        """Begin as far as is possible without a container; what is wrong, `judge` will say."""
        if self._early is None:
            self._early = threading.Thread(target=self._try_early, daemon=True)
            self._early.start()

    def judge(self, moved: Sequence[tuple[str, str]], seconds: float) -> None:
        """Wait until there is room for all that the snapshot needs, and begin, unless that is done.

        `moved`: UUIDs, of each GPU that was and that which takes it up. Raises Unfit.
        """
        self._end_early()
        gpus = dict(moved)
        if self._refill is None or self._refill.gpus != gpus:
            self._begin(gpus, seconds)

    def ready(self, seconds: float) -> None:
        """Wait until all has been made, and there is room for what the driver brings as well.

        Where somebody was quicker, it is made again as soon as there is room. Raises Unfit and
        GpuFailed.
        """
        assert self._refill is not None, "whoever has made the plan has asked `judge`"
        gpus = self._refill.gpus
        try:
            self._refill.made()
        except GpuFailed:
            self._begin(gpus, seconds).made()
        state = self._snapshot.config.gpu
        needed = {gpus[uuid]: size for uuid, size in state.memory.items()}
        rules.wait_for_memory(needed, self._node.now, seconds, self._node.anew)

    def give(self, pids: Mapping[int, int]) -> None:
        """Hand it to the restored processes: their pids inside → ours."""
        assert self._refill is not None, "whoever has made the plan has asked `judge`"
        having = {p.pid for p in self._snapshot.config.gpu.processes if p.regions}
        self._refill.give({inside: pid for inside, pid in pids.items() if inside in having})

    def report(self) -> str:
        """Words for the log: how much, how fast, and seconds of each step."""
        if self._refill is None:
            return ""
        found = self._refill.figures()
        rate = f" rate={found.total / GIB / found.seconds:.1f}" if found.seconds else ""
        spans = (f" {span.name}={span.seconds:.3f}" for span in self._refill.timeline.spans)
        whence = " from=cache" if found.cached else " from=cufile" if found.direct else ""
        if found.refused:
            whence = f" from=ring cufile={json.dumps(found.refused)}"
        sizes = f"gib={found.total / GIB:.3f} stored={found.stored / GIB:.3f}"
        return f"{sizes}{rate}{whence}{''.join(spans)}"

    def close(self) -> None:
        """Let go of all that nobody was given; `judge` would begin anew."""
        self._end_early()
        refill, self._refill = self._refill, None
        if refill is not None:
            refill.close()

    def _begin(self, gpus: Mapping[str, str], seconds: float) -> Refill:
        refill = self._new()
        needed = self._snapshot.config.gpu.needed
        taken = {gpus[uuid]: size for uuid, size in needed.items()}
        rules.wait_for_memory(taken, self._node.now, seconds, self._node.anew)
        refill.begin(gpus)
        return refill

    def _new(self) -> Refill:
        """A refill that has not begun: the one that there is, if it has not."""
        if self._refill is not None and not self._refill.gpus:
            return self._refill
        if self._refill is not None:
            self._refill.close()
        if self._stored is None:
            self._stored = stored(self._snapshot)
        assert self._stored is not None, "there are regions"
        cached = self._cached(self._snapshot, self._stored)
        state = self._snapshot.config.gpu
        self._refill = Refill(self._open, self._stored, state, cached, self._storage)
        return self._refill

    def _end_early(self) -> None:
        self._enough.set()
        if self._early is not None:
            self._early.join()

    def _try_early(self) -> None:
        try:
            refill = self._new()
            refill.prefetch()
            if self._at_once:
                self._begin_early(refill)
        except (ThawError, OSError, ValueError):
            pass  # none of it matters before there is a container

    def _begin_early(self, refill: Refill) -> None:
        here = self._node.gpus()  # with who uses them, as of `anew`
        gpus = certain(self._snapshot.config, here)
        pause = _PAUSE
        while gpus and not self._enough.is_set():
            room = self._has_room(gpus, here)
            if room and not self._is_used(here):
                refill.begin(gpus)
                return
            self._enough.wait(pause)
            pause = min(2 * pause, _LONG_PAUSE) if room else _PAUSE
            here = self._node.now()
            if self._has_room(gpus, here):
                here = self._node.anew()

    def _has_room(self, gpus: Mapping[str, str], here: Sequence[Gpu]) -> bool:
        free = {gpu.uuid: gpu.free for gpu in here}
        needed = self._snapshot.config.gpu.needed
        return all(free.get(gpus[uuid], 0) >= size for uuid, size in needed.items())

    def _is_used(self, here: Sequence[Gpu]) -> bool:
        """By somebody who has nothing to do with us; as far as NVML knows."""
        pids = {pid for gpu in here for pid in gpu.processes} - {os.getpid()}
        return bool(pids and pids - {self._holder()})


def certain(snapshot: SnapshotConfig, node: Sequence[Gpu]) -> dict[str, str]:
    """Which GPU takes up which, if the node has no others; otherwise nothing. UUIDs."""
    old = snapshot.gpu.uuids
    if len(node) != len(old) or any(rules.reasons(snapshot.host.gpus, node)):
        return {}
    try:
        new = rules.successors(old, node, snapshot.host.gpus)
    except ThawError:
        return {}
    return {then: now.uuid for then, now in zip(old, new, strict=True)}
