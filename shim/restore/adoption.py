"""What makes a restored process the new pod's, before anybody outside sees it.

Its network is announced by the hook, it learns who it is, goes on, and proves itself; until then
nothing passes in the pod's network. Each of it is a step of the restore (steps.py).
"""

# All steps take the same two values, whether they need both or not.

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from oci_hooks import hold
from shim.bundle import read_pid
from shim.config import Config
from shim.errors import ThawError
from shim.restore.hook import Hook
from shim.restore.plan import Plan
from shim.work import Work
from shim.worker import identity
from shim.worker.control import RESTORED, find

_PUT_AWAY = 2.0  # seconds


class Adoption:
    """One restore's, in the engine's process: what is started early, and what came of the steps."""

    def __init__(self) -> None:
        self.identity: Mapping[str, Any] = {}
        self._hook = Hook()
        self._removal: threading.Thread | None = None
        self._later: list[Callable[[], None]] = []

    @property
    def warnings(self) -> list[str]:
        """What a person should know of the pod's network."""
        return self._hook.warnings

    def start(self, config: Config) -> None:
        """Begin with what takes long, unless it has begun; it waits for the restore then."""
        self._hook.start(config)

    def later(self, what: Callable[[], None]) -> None:
        """Have it done when nobody waits any longer."""
        self._later.append(what)

    def finish(self) -> None:
        """Put away what is left; nobody waits for it."""
        for what in self._later:
            what()
        if self._removal is not None:
            self._removal.join(_PUT_AWAY)
        self._hook.close()

    # -- steps ---------------------------------------------------------------------------------

    def hold(self, work: Work, plan: Plan) -> None:
        """Let nothing in or out of the pod's network."""
        if plan.network:
            hold.hold(plan.network, owner=work.id)

    def adopt(self, work: Work, plan: Plan) -> None:
        """Run the network hook."""
        if plan.network:
            pid = read_pid(work.bundle.pid_file)
            self._hook.start(work.config)
            self._hook.run(work.id, pid, work.bundle, work.config.number("network.timeout"))

    def introduce(self, work: Work, plan: Plan) -> None:
        """Write who the worker is."""
        self.identity = identity.introduce(
            work.bundle.spec(),
            container=work.id,
            pid=read_pid(work.bundle.pid_file),
            hostname=plan.hostname,
            snapshot=work.details["name"],
            restored=True,
        )

    def complete(self, work: Work, plan: Plan) -> None:
        """Tell the worker that it is restored; one that is asked nothing may be seen before."""
        if plan.resume is None and plan.canary is None:
            self.let_pass(work, plan)
        control = find(work.bundle.spec())
        if control is not None:
            control.tell(RESTORED)

    def resume(self, work: Work, plan: Plan) -> None:
        """Do what the pod wants done after a restore."""
        if plan.resume is not None:
            from shim.worker.actions import act

            act(plan.resume, _worker(work), plan.resume_timeout)

    def prove(self, work: Work, plan: Plan) -> None:
        """Ask what it must answer rightly."""
        if plan.canary is not None:
            from shim.worker.canary import prove

            prove(plan.canary, _worker(work))

    def let_pass(self, work: Work, plan: Plan) -> None:
        """Let everything pass. The hold's tables, without effect now, are removed behind it."""
        if plan.network and self._removal is None:
            hold.let_pass(plan.network, owner=work.id)
            self._removal = threading.Thread(target=_remove, args=(plan.network, work.id))
            self._removal.start()


def forget(work: Work) -> None:
    """Undo `introduce` and `complete`: the control directory is as before any start."""
    control = find(work.bundle.spec())
    if control is not None:
        with suppress(FileNotFoundError):  # nothing has been made of the container at all
            control.clear()


def release(work: Work, plan: Plan) -> None:
    """Undo `hold`, and what CRIU itself has locked and not unlocked because it failed."""
    if plan.network:
        with suppress(FileNotFoundError):  # the pod is gone, and its network with it
            hold.unlock(plan.network)
            hold.release(plan.network, owner=work.id)


def _remove(network: str, owner: str) -> None:
    with suppress(ThawError, OSError):
        hold.release(network, owner=owner)


def _worker(work: Work) -> Any:
    from shim.worker.actions import Worker

    return Worker(work.id, read_pid(work.bundle.pid_file), work.runc)
