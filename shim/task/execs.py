"""A process that was added to a running container: created, running, stopped."""

from __future__ import annotations

import os
import time

from shim.bundle import read_pid, write_atomically
from shim.errors import FailedPrecondition, NotFound
from shim.task.process import Console, Process
from shim.task.reaper import Exit
from shim.task.state import CREATED, RUNNING, STOPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.bundle import Bundle
    from shim.runc import Runc
    from shim.task.host import Host
    from shim.task.stdio import Streams

REFUSED = 255  # exit status of a process that never ran


class Exec(Process):
    """An exec'd process; `spec` is its JSON OCI Process."""

    def __init__(self, exec_id: str, spec: bytes, streams: Streams) -> None:
        super().__init__(streams)
        self.id = exec_id
        self.spec = spec

    @property
    def status(self) -> int:
        """CREATED, RUNNING or STOPPED."""
        if self.pid:
            return RUNNING if self.exit is None else STOPPED
        return CREATED

    def start(self, runc: Runc, bundle: Bundle, console_folder: str) -> None:
        """Run it. The caller holds an early-exit scope and claims the pid afterwards."""
        if self.pid or self.exit is not None:
            raise FailedPrecondition(f"exec {self.id} has been started already")
        spec_file = f"{bundle.path}/{self.id}.exec.json"
        pid_file = bundle.exec_pid_file(self.id)
        write_atomically(spec_file, self.spec)
        try:
            run_with_stdio(
                self,
                console_folder,
                lambda fds, console: runc.exec(spec_file, pid_file, fds, console),
            )
        except BaseException:
            # It stays "created", but nobody must wait for its end (containerd's TestIssue10589).
            self.set_exit(Exit(REFUSED, time.time_ns()))
            raise
        finally:
            os.unlink(spec_file)
        self.pid = read_pid(pid_file)

    def kill(self, host: Host, signal: int) -> None:
        """Signal it by pid: runc has no name for an exec'd process."""
        if not self.pid:
            raise FailedPrecondition(f"exec {self.id} is not started")
        if self.exit is not None:
            raise NotFound(f"exec {self.id} has ended")
        if not host.reaper.kill(self.pid, signal):
            raise NotFound(f"exec {self.id} has ended")

    def delete(self, bundle: Bundle) -> None:
        """Let go of it once it has ended, or if it was never started."""
        if self.status == RUNNING:
            raise FailedPrecondition(f"cannot delete exec {self.id}: it is running")
        if self.stdio is not None:
            self.stdio.drain(2.0)
        self.close_stdio()
        try:
            os.unlink(bundle.exec_pid_file(self.id))
        except FileNotFoundError:
            pass

    def ended(self, exit: Exit) -> None:
        """It is over."""
        self.set_exit(exit)


def run_with_stdio(
    process: Process, console_folder: str, start: Callable[[dict[int, int], str], None]
) -> None:
    """Call `start(child_fds, console_socket)` with the process's open streams attached."""
    stdio = process.stdio
    assert stdio is not None
    try:
        if process.streams.terminal:
            with Console(console_folder) as console:
                start({}, console.path)
                stdio.attach_console(console.receive())
        else:
            start(stdio.child_fds, "")
        stdio.started()
    except BaseException:
        stdio.close()
        raise
