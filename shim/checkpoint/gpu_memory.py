"""What of a container's GPU memory is moved by us while it is dumped, and why the rest is not.

Per process: one without the library (see gpu/absence.py) is the driver's with all it has; of one
with it the library names what it leaves to the driver. A process that was given memory back once is
never left to the driver altogether: that is, for the driver, memory of another process, which no
restore brings back. Where the driver alone shall save it all the same there is no snapshot.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import Unfit
from shim.snapshot.cuda import CudaProcess, GpuRegion, Staging
from shim.timeline import Timeline
from shim.work import Work

if TYPE_CHECKING:
    from shim.gpu import nvml
    from shim.gpu.memory.device import Memory
    from shim.gpu.memory.keeper import Keeper
    from shim.gpu.memory.saving import Saved
    from shim.gpu.memory.suspend import Found, Movement

_GIB, _MIB = 1 << 30, 1 << 20


class Moved:
    """What was moved in one dump; without a movement nothing was."""

    def __init__(
        self,
        found: Mapping[int, Found],
        inside: Mapping[int, int],
        movement: Movement | None,
        timeline: Timeline,
        reason: str = "",
    ) -> None:
        self._found = found
        self._inside = inside
        self._movement = movement
        self._timeline = timeline
        self._reason = reason  # why none of it is moved
        self._saved: Saved | None = None

    @property
    def any(self) -> bool:
        """Whether there is something."""
        return self._movement is not None

    def process(self, pid: int, inside: int, staging: list[Staging]) -> CudaProcess:
        """What the snapshot says of a process, by our pid and the container's."""
        found = self._found[pid]
        reason = self._reason or found.reason
        return CudaProcess(inside, staging, self._regions(pid), found.left, reason)

    def _regions(self, pid: int) -> list[GpuRegion]:
        return self._movement.regions(pid) if self._movement is not None else []

    def save(self, folders: Sequence[Path], budget: int) -> None:
        """Begin to copy it into `folders`, which are there.

        `budget`: bytes that may be read and not yet written when the processes go on.
        """
        if self._movement is not None:
            # As the document has them: extents count regions so.
            order = sorted(self._inside, key=self._inside.__getitem__)
            self._movement.save(folders, order, budget)

    def give_back(self) -> None:
        """Once it is read. Raises GpuLost, CheckpointFailed."""
        if self._movement is not None:
            self._movement.give_back()

    def finish(self) -> None:
        """Wait until it is written. Raises CheckpointFailed."""
        if self._movement is not None and self._saved is None:
            self._saved = self._movement.finish()

    def index(self, folder: Path) -> None:
        """Write where it lies, into the folder of the index. Raises OSError."""
        if self._saved is not None:
            from shim.gpu.memory import index

            index.write(folder, self._saved.extents)

    def report(self) -> dict[str, str]:
        """Words for the log: GiB, GiB/s, and what is left to the driver."""
        words: dict[str, str] = {}
        if self._saved is not None:
            seconds = self._timeline.seconds("scan") + self._timeline.seconds("copy")
            words["gib"] = f"{self._saved.total / _GIB:.3f}"
            words["stored"] = f"{self._saved.stored / _GIB:.3f}"
            words["rate"] = f"{self._saved.total / _GIB / seconds:.1f}" if seconds else ""
        if left := self._left():
            words["left"] = ", ".join(f"{kind} {n / _MIB:.1f} MiB" for kind, n in left.items())
        reasons = [f"{self._inside[pid]}: {one.reason}" for pid, one in self._found.items()]
        without = [self._reason] if self._reason else [r for r in reasons if r.partition(": ")[2]]
        return words | ({"driver": "; ".join(without)} if without else {})

    def _left(self) -> dict[str, int]:
        """Bytes that the driver has of processes with the library, by kind: see wire.LEFT."""
        found: Counter[str] = Counter()
        for one in self._found.values():
            found.update(one.left)
        return dict(sorted(found.items()))


@contextmanager
def moved(
    work: Work, cuda: Mapping[int, int], gpus: Sequence[nvml.Gpu], timeline: Timeline
) -> Iterator[Moved]:
    """A block in which the GPU memory of processes that can be moved is out of the driver's way.

    `cuda`: our pid → the container's; `gpus`: what the container has. Raises Unfit before anything
    is touched if a process could never be restored; otherwise as Movement does.
    """
    from shim.gpu.absence import forbidden, reason_of
    from shim.gpu.memory import suspend

    spec = work.bundle.spec()
    found = suspend.ask(cuda, lambda pid: reason_of(pid, spec, work.config))
    try:
        having = {
            pid: (one.library, one.about)
            for pid, one in found.items()
            if one.library is not None and one.about is not None and one.about.movable
        }
        memory: Memory | None = None
        reason = forbidden(spec, work.config)
        if having and not reason:
            memory, reason = _opened(work)
        if memory is None:
            if reason:
                suspend.refuse_given(found, reason)
            yield Moved(found, cuda, None, timeline, reason)
            return
        try:
            most = sum(gpu.memory for gpu in gpus)
            theirs = {gpu.uuid for gpu in gpus}
            seconds = work.config.number("gpu.lock")
            with (
                _keeper(work) as keeper,
                suspend.Movement(
                    memory, having, timeline, seconds, most, keeper, theirs
                ) as movement,
            ):
                yield Moved(found, cuda, movement, timeline)
        finally:
            memory.close()
    finally:
        suspend.close(found.values())


def _keeper(work: Work) -> Keeper:
    """For the next engine, should we be killed: as long as there are container and daemon."""
    from shim.gpu.memory.keeper import Keeper

    return Keeper(work.folder, [os.getppid(), int(work.details["pid"])])


def _opened(work: Work) -> tuple[Memory | None, str]:
    """The driver's memory calls, or why there are none."""
    from shim.gpu.memory.device import Memory

    try:
        return Memory.open(work.config.text("gpu.library")), ""
    except Unfit as error:
        return None, error.message
