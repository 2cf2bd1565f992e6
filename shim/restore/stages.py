"""What is done at CRIU's stages of a restore.

At `post-restore` all processes are there in their final shape, with their mounts, descriptors and
limits, and none of them has run: each waits in CRIU's restorer code, as root still (credentials
come after it, criu/cr-restore.c). What a snapshot must not bring along is refused or taken from it
here; then memory is filled, and room on the GPUs waited for. Whatever is raised makes CRIU end
them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shim.errors import RestoreFailed
from shim.restore import linked
from shim.restore.bulk import Memory
from shim.restore.device import Device
from shim.restore.devices import exchange
from shim.restore.frozen import check_mounts, set_limits, tighten
from shim.restore.plan import Plan, linked_images
from shim.task.dumping import mark
from shim.task.restoration import RUNS
from shim.timeline import Timeline
from shim.work import Work


class Stages:
    """The stages of one restore."""

    def __init__(
        self, work: Work, plan: Plan, memory: Memory, device: Device, timeline: Timeline
    ) -> None:
        self._work = work
        self._plan = plan
        self._memory = memory
        self._device = device
        self._timeline = timeline
        self._began = time.monotonic()
        self._seen = False

    def actions(self) -> dict[str, Callable[[int], None]]:
        """What is to be done at which stage; makes the folder that CRIU reads from.

        A runtime that does not hand our configuration to CRIU restores nothing: the pagemaps are
        put in their place at CRIU's `pre-restore` stage.
        """
        about = linked_images(self._work), self._plan, self._memory.index
        linked.lay(*about)
        return {"pre-restore": lambda _: linked.complete(*about), "post-restore": self._look}

    def refuse_unseen(self) -> None:
        """Raise RestoreFailed if CRIU has gone on without us."""
        if not self._seen:
            raise RestoreFailed(
                "CRIU did not stop before the processes run",
                hint="does something override its configuration?",
            )

    def _look(self, init: int) -> None:
        self._timeline.note("processes", self._began)
        spec = self._work.bundle.spec()
        tighten(self._plan, init)
        check_mounts(spec, self._plan, init)
        set_limits(spec, init)
        exchange(self._plan.devices, init)
        with self._timeline.span("memory"):
            self._memory.fill(init)
        with self._timeline.span("room"):
            self._device.ready(self._work)
        self._seen = True
        mark(str(self._work.folder), RUNS)
