"""The states of a container, one class each; a verb that is not its own is refused by name.

            create                start              exit
    ───────────────▶ Created ───────────▶ Running ─────────▶ Stopped ──▶ (deleted)
    ──▶ CreatedFromSnapshot ─▶ Restoring ─┘ │  ▲               ▲
                                     Pausing ▼  │ resume        │
                                          Paused ──────────────┘

`status` is what containerd hears. A restore runs inside Start, so that Restoring is still
"created" to it; a Start that is refused ends in Stopped, because containerd 1.6 cannot remove a
pod whose task is anything else then.
"""

from __future__ import annotations

from shim.errors import FailedPrecondition, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.task.container import Container

CREATED, RUNNING, STOPPED, PAUSED, PAUSING = 1, 2, 3, 4, 5


class State:
    """Refuses every verb; the states allow theirs."""

    status = 0
    word = "unknown"

    def __init__(self, container: Container) -> None:
        self.container = container

    def start(self, deadline: float | None) -> None:
        """Run the program. `deadline` is on the monotonic clock, in seconds."""
        raise self._refusal("start")

    def pause(self) -> None:
        """Freeze the container."""
        raise self._refusal("pause")

    def resume(self) -> None:
        """Thaw the container."""
        raise self._refusal("resume")

    def update(self, resources: bytes) -> None:
        """Change limits to a JSON LinuxResources."""
        raise self._refusal("update")

    def check_exec(self) -> None:
        """Raise if no process can be added now."""
        raise self._refusal("exec in")

    def check_checkpoint(self) -> None:
        """Raise if the container cannot be dumped now."""
        raise self._refusal("checkpoint")

    def kill(self, signal: int, everyone: bool) -> None:
        """Signal init, or everyone."""
        raise self._refusal("kill")

    def delete(self) -> None:
        """Remove what the runtime made."""
        raise self._refusal("delete")

    def _refusal(self, verb: str) -> FailedPrecondition:
        return FailedPrecondition(f"cannot {verb} container {self.container.id}: it is {self.word}")


class _Alive(State):
    def kill(self, signal: int, everyone: bool) -> None:
        self.container.runc.kill(signal, everyone=everyone)

    def update(self, resources: bytes) -> None:
        self.container.run_update(resources)


class Created(_Alive):
    """runc has made it; its init waits for Start."""

    status = CREATED
    word = "created"

    def start(self, deadline: float | None) -> None:
        self.container.introduce()
        try:
            self.container.runc.start()
        except BaseException:
            self.container.refuse_start()
            raise
        self.container.exits.become(Running)

    def check_exec(self) -> None:
        pass

    def delete(self) -> None:
        self.container.run_delete(force=True)


class CreatedFromSnapshot(State):
    """Nothing exists yet; Start restores."""

    status = CREATED
    word = "created from a snapshot"

    def start(self, deadline: float | None) -> None:
        self.container.state = Restoring(self.container)
        self.container.start_from_snapshot(deadline)

    def kill(self, signal: int, everyone: bool) -> None:
        self.container.cancel_restore()
        self.container.stop_unstarted(128 + signal)

    def delete(self) -> None:
        self.container.cancel_restore()
        self.container.run_delete(force=True)


class Restoring(State):
    """Start is under way; Kill and Delete end it."""

    status = CREATED
    word = "being restored"

    def kill(self, signal: int, everyone: bool) -> None:
        self.container.cancel_restore()

    def delete(self) -> None:
        raise self._refusal("delete")  # Delete has cancelled it and waited: it cannot be in here


class Running(_Alive):
    """Its program runs."""

    status = RUNNING
    word = "running"

    def pause(self) -> None:
        container = self.container
        container.state = Pausing(container)
        try:
            container.runc.pause()
        except BaseException:
            container.exits.become(Running)
            raise
        container.exits.become(Paused)

    def check_exec(self) -> None:
        pass

    def check_checkpoint(self) -> None:
        pass


class Pausing(_Alive):
    """`runc pause` is under way."""

    status = PAUSING
    word = "pausing"


class Paused(_Alive):
    """Frozen."""

    status = PAUSED
    word = "paused"

    def resume(self) -> None:
        self.container.runc.resume()
        self.container.exits.become(Running)

    def check_checkpoint(self) -> None:
        pass


class Stopped(State):
    """Its init has ended, or Start was refused."""

    status = STOPPED
    word = "stopped"

    def kill(self, signal: int, everyone: bool) -> None:
        if everyone and self.container.shares_pids:
            self.container.runc.kill(signal, everyone=True)
            return
        raise NotFound(f"container {self.container.id} is not running")

    def delete(self) -> None:
        self.container.run_delete(force=False)


class Deleted(State):
    """Gone; only a request that was late can see it."""

    word = "deleted"

    def _refusal(self, verb: str) -> FailedPrecondition:
        raise NotFound(f"container {self.container.id} not created")
