"""In which order the ends of a container's processes are reported.

containerd relies on it: no exit overtakes its start, although SIGCHLD may come first; and init's
exit is the last of its container (#10589 is what happens otherwise).
"""

from __future__ import annotations

from shim import log
from shim.errors import ThawError
from shim.lean.threads import Lock, start
from shim.task.state import PAUSED, RUNNING, STOPPED, State, Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from shim.task.container import Container
    from shim.task.execs import Exec
    from shim.task.reaper import Exit


class Exits:
    """The exits of one container. `init_ended` and `exec_ended` are called on the loop thread."""

    def __init__(self, container: Container) -> None:
        self.init_end: Exit | None = None  # known, though perhaps not reported yet
        self._container = container
        self._lock = Lock()
        self._held = 0

    def held(self) -> Held:
        """A scope in which no exit of init is reported: its start or a Kill is under way.

        On hearing of the exit containerd 1.6 deletes the task and drops its connection, and with
        it the answer that the caller of Kill still waits for.
        """
        return Held(self)

    def become(self, state: type[State]) -> None:
        """Change the container's state, unless init has ended meanwhile."""
        with self._lock:
            if self._container.state.status != STOPPED:
                self._container.state = state(self._container)

    def init_ended(self, exit: Exit) -> None:
        """Init is over."""
        container = self._container
        self.init_end = exit
        container.aside.cancel()
        if container.membership is not None:
            start(container.leave)
        container.host.oom.check(container.id)  # an OOM event comes before the exit that it caused
        frozen = container.state.status == PAUSED  # looked at before it becomes Stopped
        if container.shares_pids or frozen:
            start(lambda: self._end_the_rest(frozen))
        self.settle()

    def exec_ended(self, process: Exec, exit: Exit) -> None:
        """An added process is over."""
        container = self._container
        process.ended(exit)
        container.host.events.publish_exit(container.id, process.id, process.pid, exit)
        self.settle()

    def settle(self) -> None:
        """Report init's end once it is the last: after its start and every other exit."""
        container = self._container
        with self._lock:
            exit = self.init_end
            # A list at once: another thread may be deleting one.
            others = any(process.status == RUNNING for process in list(container.execs.values()))
            if exit is None or self._held or others or container.init.exit is not None:
                return
            recorded = container.init.record_exit(exit, lambda: self._report(exit))
        if recorded:
            container.init.tell_exit()

    def _report(self, exit: Exit) -> None:
        # The event first: a Delete on another thread goes on as soon as it sees one of the others,
        # and the event that it sends itself would overtake this one.
        container = self._container
        container.host.events.publish_exit(container.id, container.id, container.init.pid, exit)
        container.state = Stopped(container)

    def _end_the_rest(self, frozen: bool) -> None:
        # Without a pid namespace of its own the kernel does not end the others with init; and
        # nobody can end while frozen.
        container = self._container
        try:
            if frozen:
                container.runc.resume()
            if container.shares_pids:
                container.runc.kill(9, everyone=True)
        except ThawError as error:
            log.warning(
                "could not end the rest of the container", container=container.id, error=error
            )


class Held:
    """See `Exits.held`; nests, and may be entered by several threads at once."""

    def __init__(self, exits: Exits) -> None:
        self._exits = exits

    def __enter__(self) -> Self:
        with self._exits._lock:
            self._exits._held += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._exits._lock:
            self._exits._held -= 1
        self._exits._container.host.loop.call_soon(self._exits.settle)
