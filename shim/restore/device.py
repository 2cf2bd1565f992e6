"""The GPU part of one restore. Nothing of shim.gpu is loaded without need.

What takes long, loading and initializing the driver, is begun as soon as it is known that the
snapshot has CUDA processes, so that it is done while CRIU works; where a snapshot is read ahead,
before there is a container.
"""

# All steps take the same two values, whether they need both or not.

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from shim.bundle import read_pid
from shim.config import Config
from shim.errors import RestoreFailed, Unfit
from shim.processes import processes_below
from shim.restore.plan import Plan
from shim.snapshot import fit
from shim.snapshot.config import SnapshotConfig
from shim.work import Work

if TYPE_CHECKING:
    from shim.gpu.node import Node
    from shim.gpu.resumption import Resumption
    from shim.restore.gpu_memory import GpuMemory
    from shim.snapshot.snapshot import Snapshot


class Device:
    """One restore's, in the engine's process: what is begun early, and what came of the step."""

    def __init__(self) -> None:
        self._resumption: Resumption | None = None
        self._memory: GpuMemory | None = None
        self._node: Node | None = None

    def expect(
        self, config: Config, snapshot: SnapshotConfig, folder: Snapshot | None = None
    ) -> None:
        """Begin to load the driver if the snapshot needs it, unless that has begun.

        With its `folder`, also to fill the GPU memory that does not come by the driver.
        """
        if snapshot.gpu.processes and self._resumption is None:
            from shim.gpu.driver import Driver
            from shim.gpu.node import Node
            from shim.gpu.resumption import Resumption

            self._node = Node()
            self._node.begin()
            library = config.text("gpu.library")
            self._resumption = Resumption(partial(Driver.open, library))
            # NVML's answer is what the filling of GPU memory waits for, and cuInit only what the
            # driver's restore does. Side by side they took 0.12 seconds, NVML first 0.035 (H100).
            self._resumption.prepare(after=self._node.settle)
        if snapshot.gpu.regions and folder is not None and self._memory is None:
            from shim.restore.gpu_memory import GpuMemory

            assert self._node is not None, "what has regions has processes"
            self._memory = GpuMemory(config, folder, self._node)
            self._memory.expect()

    def judge(
        self,
        work: Work,
        spec: Mapping[str, Any],
        snapshot: SnapshotConfig,
        folder: Snapshot | None = None,
    ) -> list[tuple[str, str]]:
        """Which GPU of the container takes up which of the snapshot's: UUIDs, if one has moved.

        Raises Unfit unless this machine's driver and the container's GPUs will do. Waits a while
        for their memory, if there is not enough of it: a process whose restore found no room is
        lost (see gpu.driver.Driver.restore), and all that CRIU has done by then was in vain.
        """
        if not snapshot.gpu.processes:
            return []
        if self._memory is not None and folder is not None and not self._memory.is_of(folder):
            self._memory.close()
            self._memory = None
        self.expect(work.config, snapshot, folder)
        assert self._resumption is not None
        assert self._node is not None
        from shim.gpu import rules
        from shim.gpu.given import given

        node = self._node.gpus()
        runtime = work.config.text("BinaryName")
        for reason in fit.gpu_reasons(snapshot, spec, runtime, node):
            raise Unfit(reason, hint="give the pod GPUs as the snapshot was made with")
        old, kinds = snapshot.gpu.uuids, snapshot.host.gpus
        new = rules.successors(old, given(spec, node, runtime), kinds) if old else []
        taken_up = [(uuid, gpu.uuid) for uuid, gpu in zip(old, new, strict=True)]
        moved = rules.pairs(old, new)
        seconds = work.config.number("gpu.wait")
        if self._memory is not None:
            self._memory.judge(taken_up, seconds)
        else:
            needed = {now: snapshot.gpu.memory.get(then, 0) for then, now in taken_up}
            rules.wait_for_memory(needed, self._node.now, seconds, self._node.anew)
        self._resumption.check()
        return moved

    def ready(self, work: Work) -> None:
        """Wait until there is GPU memory for the processes; asked before any of them runs.

        Raises Unfit and GpuFailed.
        """
        if self._memory is not None:
            self._memory.ready(work.config.number("gpu.wait"))

    def resume(self, work: Work, plan: Plan) -> None:
        """The step: give the restored processes their GPU state back, then let them use it."""
        if not plan.cuda:
            return
        assert self._resumption is not None  # whoever has made the plan has asked `judge`
        from shim.gpu.nvml import uuid_bytes

        pairs = [(uuid_bytes(old), uuid_bytes(new)) for old, new in plan.gpus]
        pids = restored(read_pid(work.bundle.pid_file), plan.cuda)
        self._resumption.resume(pids, pairs)
        if self._memory is not None:
            self._memory.give(dict(zip(plan.cuda, pids, strict=True)))

    def report(self) -> dict[str, str]:
        """Words for the log: seconds of each step; none if no GPU was needed."""
        if self._resumption is None:
            return {}
        spans = self._resumption.timeline.spans
        words = (f"{span.name}={span.seconds:.3f}" for span in spans)
        moved = self._memory.report() if self._memory is not None else ""
        return {"cuda": " ".join(words)} | ({"gpu": moved} if moved else {})

    def close(self) -> None:
        """Let go of GPU memory that no process was given; `judge` would begin anew."""
        if self._memory is not None:
            self._memory.close()


def restored(init: int, inside: tuple[int, ...]) -> list[int]:
    """Our pids of the container's processes `inside`. Raises RestoreFailed if one is not there."""
    found = processes_below(init)
    missing = [pid for pid in inside if pid not in found]
    if missing:
        words = ", ".join(map(str, missing))
        raise RestoreFailed(
            f"process {words} of the container has GPU state and is not there",
            hint="has it been killed? Its pod's events may tell",
        )
    return [found[pid] for pid in inside]
