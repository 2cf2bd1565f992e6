"""A container: its init, its exec'd processes and its state.

The verbs of the Task service arrive here one at a time per container (`verbs`), but for Kill,
which must reach a container whose Start or Pause is under way. Exits arrive on the loop thread.
"""

from __future__ import annotations

import os
import time

from shim import log
from shim.annotations import is_annotated
from shim.bundle import hostname_of, read_pid, write_atomically
from shim.cgroup import of_pid
from shim.errors import AlreadyExists, Cancelled, FailedPrecondition, NotFound, ThawError
from shim.lean.threads import Event, Lock, RLock
from shim.proto import events_pb as pb
from shim.proto.known import timestamp
from shim.task.aside import Aside
from shim.task.dumping import Dumping
from shim.task.execs import Exec, run_with_stdio
from shim.task.exits import Exits
from shim.task.membership import membership_of
from shim.task.process import Process
from shim.task.reaper import Exit
from shim.task.signals import ends
from shim.task.state import (
    PAUSED,
    PAUSING,
    STOPPED,
    Created,
    CreatedFromSnapshot,
    Deleted,
    Running,
    State,
    Stopped,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from shim.bundle import Bundle
    from shim.cgroup import Cgroup
    from shim.config import Config
    from shim.runc import Runc
    from shim.task.host import Host
    from shim.task.restoration import Restoration
    from shim.task.rootfs import Rootfs
    from shim.task.source import Origins
    from shim.task.stdio import Streams

DRAIN = 10.0  # seconds that Delete waits for output, as containerd's own shim does


class Container:
    """One container of the pod. `folder` is its place under the state folder."""

    def __init__(
        self,
        host: Host,
        bundle: Bundle,
        runc: Runc,
        rootfs: Rootfs,
        streams: Streams,
        *,
        config: Config,
        folder: str,
        shares_pids: bool,
        restoration: Restoration | None = None,
        origins: Origins | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        self.host = host
        self.bundle = bundle
        self.runc = runc
        self.id = runc.id
        self.rootfs = rootfs
        self.config = config
        self.folder = folder
        self.shares_pids = shares_pids
        self.restoration = restoration
        self.aside = Aside(self, origins)
        self.dumping = Dumping(folder)
        self._annotated = is_annotated(notes or {})
        self.membership = membership_of(self, notes or {})
        self.identity: Mapping[str, Any] = {}
        self.init = Process(streams)
        self.execs: dict[str, Exec] = {}
        self.state: State = CreatedFromSnapshot(self) if restoration else Created(self)
        self._pipe_owner = (int(config.number("IoUid")), int(config.number("IoGid")))
        self._cgroup: Cgroup | None = None
        self._restored = False
        self.verbs = RLock()
        self.exits = Exits(self)
        self._execs_lock = Lock()

    # -- verbs of the Task service -------------------------------------------------------------

    def create(self) -> None:
        """Make the container with runc; for a restore only the streams are opened yet."""
        self._open(self.init, held=self.restoration is not None)
        if self.restoration is not None:
            self.restoration.prepare(self.runc.env)
            return
        self.create_cold()

    def create_cold(self) -> None:
        """Mount the root file system and `runc create`."""
        self.rootfs.mount()
        run_with_stdio(
            self.init,
            self.config.text("state"),
            lambda fds, console: self.runc.create(
                self.bundle.path, self.bundle.pid_file, fds, console
            ),
        )
        self.init.pid = read_pid(self.bundle.pid_file)

    def watch_init(self) -> None:
        """From now on init's end is reported, and OOM kills in its cgroup are.

        The caller has held an early-exit scope since before init was made.
        """
        if not self.init.pid:
            return
        self.host.reaper.claim(self.init.pid, self.exits.init_ended)
        try:
            self.host.oom.add(self.id, self.cgroup())
        except (ThawError, OSError) as error:
            log.warning("no OOM events for container", container=self.id, error=error)

    def start(self, deadline: float | None) -> int:
        """Run init; `deadline` is on the monotonic clock. Returns its pid."""
        with self.verbs:
            with self.exits.held():
                self.state.start(deadline)
                if self._restored or not self.aside.makes:
                    self._join(deadline)
                self.host.events.publish(pb.TaskStart(container_id=self.id, pid=self.init.pid))
            if not self._restored:
                self.aside.begin(anew=self.restoration is not None and self.restoration.unfit)
            return self.init.pid

    def start_exec(self, exec_id: str) -> int:
        """Run an added process; returns its pid."""
        process = self.exec(exec_id)
        with self.exits.held():
            if self.exits.init_end is not None:
                raise FailedPrecondition(f"init of container {self.id} is not running")
            with self.host.reaper.early():
                process.open_stdio(self.host, self._stream_env(exec_id), self._pipe_owner)
                process.start(self.runc, self.bundle, self.config.text("state"))
                self.host.events.publish(
                    pb.TaskExecStarted(container_id=self.id, exec_id=exec_id, pid=process.pid)
                )
                self.host.reaper.claim(
                    process.pid, lambda exit: self.exits.exec_ended(process, exit)
                )
        return process.pid

    def add_exec(self, exec_id: str, spec: bytes, streams: Streams) -> None:
        """Note a process to be started later."""
        self.state.check_exec()
        with self._execs_lock:
            if exec_id in self.execs:
                raise AlreadyExists(f"exec {exec_id} exists in container {self.id}")
            self.execs[exec_id] = Exec(exec_id, spec, streams)
        self.host.events.publish(pb.TaskExecAdded(container_id=self.id, exec_id=exec_id))

    def exec(self, exec_id: str) -> Exec:
        """The added process of that id. Raises NotFound."""
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"exec {exec_id} not found in container {self.id}") from None

    def process(self, exec_id: str) -> Process:
        """The added process of that id, or init for an empty one."""
        return self.exec(exec_id) if exec_id else self.init

    def status(self, exec_id: str) -> int:
        """The status of a process as containerd counts them; exec'd ones inherit a pause."""
        if not exec_id:
            return self.state.status
        status, whole = self.exec(exec_id).status, self.state.status
        return whole if whole in (PAUSED, PAUSING) and status != STOPPED else status

    def kill(
        self, exec_id: str, signal: int, everyone: bool, deadline: float | None = None
    ) -> None:
        """Signal a process; `everyone` goes with init only.

        Of whoever is to end no snapshot is made for others, and it is taken out of the registry
        first, as far as the caller's `deadline` (on the monotonic clock) allows.
        """
        if exec_id:
            self.exec(exec_id).kill(self.host, signal)
            return
        if ends(signal):
            self.aside.stop()
        if self.membership is not None:
            self.membership.end_before(signal, deadline)
        with self.exits.held():
            self.state.kill(signal, everyone)

    def pause(self) -> None:
        """Freeze."""
        with self.verbs:
            self.state.pause()
            self.host.events.publish(pb.TaskPaused(container_id=self.id))

    def resume(self) -> None:
        """Thaw."""
        with self.verbs:
            self.state.resume()
            self.host.events.publish(pb.TaskResumed(container_id=self.id))

    def update(self, resources: bytes) -> None:
        """Change limits to a JSON LinuxResources."""
        with self.verbs:
            self.state.update(resources)

    def delete(self) -> Exit:
        """Remove everything of this container. Returns how init ended."""
        self.cancel_restore()
        with self.verbs:
            self.state.delete()
            self.state = Deleted(self)
            exit = self.init.exit or self.exits.init_end or Exit(0, 0)
        self.host.events.publish(
            pb.TaskDelete(
                container_id=self.id,
                pid=self.init.pid,
                exit_status=exit.status,
                exited_at=timestamp(exit.at),
            )
        )
        return exit

    def delete_exec(self, exec_id: str) -> Exec:
        """Forget an added process that has ended or never ran."""
        process = self.exec(exec_id)
        process.delete(self.bundle)
        with self._execs_lock:
            self.execs.pop(exec_id, None)
        return process

    def pids(self) -> list[int]:
        """Every process in the container's cgroup; while it is being restored, the engine's."""
        if self.restoration is not None and not self.init.pid:
            return self.restoration.pids()
        return self.cgroup().pids()

    def cgroup(self) -> Cgroup:
        """The container's cgroup. Raises NotFound once it is gone."""
        if self._cgroup is None:
            if not self.init.pid:
                raise NotFound(f"container {self.id} has no processes yet")
            self._cgroup = of_pid(self.init.pid)
        return self._cgroup

    # -- what the states call ------------------------------------------------------------------

    def run_update(self, resources: bytes) -> None:
        """`runc update` from a file that only we can read."""
        path = f"{self.folder}/resources.json"
        write_atomically(path, resources)
        try:
            self.runc.update(path)
        finally:
            os.unlink(path)

    def introduce(self) -> None:
        """Tell a worker that boots cold who it is, before its program runs."""
        if not self._annotated:
            return
        from shim.worker.identity import introduce, public

        spec = self.bundle.spec()
        try:
            name = hostname_of(spec, self.bundle)
            told = introduce(spec, container=self.id, pid=self.init.pid, hostname=name)
        except (ThawError, OSError) as error:
            log.warning("the worker cannot be told who it is", container=self.id, error=error)
        else:
            self.identity = public(told)

    def start_from_snapshot(self, deadline: float | None) -> None:
        """Restore; or boot cold, or stop, as the annotations say."""
        assert self.restoration is not None
        with self.host.reaper.early():
            if self.restoration.attempt(self, deadline):
                self._restored = True
                self.watch_init()
                self.exits.become(Running)
                if self.restoration.cancelled:  # too late to be undone
                    self.state.kill(9, everyone=False)
                return
            try:
                self._open(self.init)
                self.create_cold()
            except BaseException:
                self.refuse_start()
                raise
            self.watch_init()
        self.exits.become(Created)  # from here on Kill goes to runc; what came before counts too
        if self.restoration.cancelled:
            self.refuse_start()
            raise Cancelled(f"start of container {self.id} was cancelled by Kill or Delete")
        self.state.start(deadline)

    def cancel_restore(self) -> None:
        """End a restore that is under way or about to begin."""
        if self.restoration is not None:
            self.restoration.cancel()

    def leave(self) -> None:
        """Take it out of the registry: it is over."""
        if self.membership is not None:
            self.membership.end()

    def stop_unstarted(self, status: int) -> None:
        """Start was refused: nobody waits any longer, and no exit event is sent."""
        self.exits.become(Stopped)
        self.init.set_exit(Exit(status, time.time_ns()))

    def refuse_start(self) -> None:
        """End what may be there of a container whose program could not be started."""
        try:
            self.runc.kill(9)
        except ThawError as error:
            log.debug("nothing to kill after a refused start", container=self.id, error=error)
        self.stop_unstarted(128 + 9)

    def run_delete(self, *, force: bool) -> None:
        """Remove what runc made, the mounts, the streams and our own files."""
        self.aside.cancel()
        self.leave()
        if force:
            self.runc.delete(force=True)
            self._await_init(5.0)
        if self.init.stdio is not None:
            self.init.stdio.started()  # the child's ends are still ours if it never ran
            self.init.stdio.drain(DRAIN)
        self.host.oom.remove(self.id)
        if not force:
            # Without an end that is known, a restore has failed that perhaps could not be undone,
            # or a worker that could not be registered is about to end.
            self.runc.delete(force=self.exits.init_end is None)
        if self.restoration is not None:
            self.restoration.put_away(self)
        self.rootfs.unmount()
        self.init.close_stdio()
        for process in list(self.execs.values()):
            process.close_stdio()
        remove_state(self.folder)
        self.bundle.forget()

    # -- ours ----------------------------------------------------------------------------------

    def _join(self, deadline: float | None) -> None:
        """Register the worker; one that must be registered and cannot be is ended."""
        if self.membership is not None:
            try:
                restored = self._restored
                self.membership.begin(self.identity, restored=restored, deadline=deadline)
            except BaseException:
                self.refuse_start()
                raise

    def _open(self, process: Process, *, held: bool = False) -> None:
        env = self._stream_env(self.id)
        process.open_stdio(self.host, env, self._pipe_owner, held=held)

    def _stream_env(self, process_id: str) -> dict[str, str]:
        """What a logging program learns; for an exec its own id, as containerd's shim says it."""
        named = {"CONTAINER_ID": process_id, "CONTAINER_NAMESPACE": self.host.namespace}
        return {**self.runc.env, **named}

    def _await_init(self, seconds: float) -> None:
        ended = Event()
        if self.init.pid:
            self.init.when_ended(lambda _exit: ended.set())
            ended.wait(seconds)


def remove_state(folder: str) -> None:
    """Remove a container's place under the state folder, and its namespace's if it was the last."""
    from shim.removal import remove_folder

    remove_folder(folder)
    try:
        os.rmdir(os.path.dirname(folder))
    except OSError:
        pass  # other containers have their places there
