"""The Task service: requests in, containers asked, responses out. v2 and v3 differ only in name.

Handlers that can be answered from memory run on the loop thread (`inline`); whatever runs runc or
touches the kernel for long gets a thread of its own. Wait holds no thread at all.
"""

from __future__ import annotations

import os
import time

from shim.errors import AlreadyExists, InvalidArgument, NotFound
from shim.lean.threads import Lock
from shim.proto import events_pb
from shim.proto import task_pb as pb
from shim.proto.known import Empty, pack, timestamp, type_name
from shim.task.creation import create
from shim.task.stdio import Streams
from shim.ttrpc.server import Deferred, Method

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shim.task.container import Container
    from shim.task.host import Host
    from shim.task.process import Process
    from shim.task.reaper import Exit
    from shim.ttrpc.server import Call

NAMES = ("containerd.task.v2.Task", "containerd.task.v3.Task")


class TaskService:
    """Containers by id, and one method per RPC. `on_shutdown` is called when the pod is over."""

    def __init__(self, host: Host, on_shutdown: Callable[[], None]) -> None:
        self.host = host
        self.containers: dict[str, Container] = {}
        self._reserved: set[str] = set()
        self._lock = Lock()
        self._on_shutdown = on_shutdown

    def methods(self) -> Mapping[str, Method]:
        """The RPC table."""
        return {
            "Create": Method(pb.CreateTaskRequest, self.create, False),
            "Start": Method(pb.StartRequest, self.start, False),
            "State": Method(pb.StateRequest, self.state, True),
            "Wait": Method(pb.WaitRequest, self.wait, True),
            "Kill": Method(pb.KillRequest, self.kill, False),
            "Delete": Method(pb.DeleteRequest, self.delete, False),
            "Exec": Method(pb.ExecProcessRequest, self.exec, True),
            "ResizePty": Method(pb.ResizePtyRequest, self.resize_pty, True),
            "CloseIO": Method(pb.CloseIORequest, self.close_io, True),
            "Pids": Method(pb.PidsRequest, self.pids, True),
            "Pause": Method(pb.PauseRequest, self.pause, False),
            "Resume": Method(pb.ResumeRequest, self.resume, False),
            "Checkpoint": Method(pb.CheckpointTaskRequest, self.checkpoint, False),
            "Update": Method(pb.UpdateTaskRequest, self.update, False),
            "Stats": Method(pb.StatsRequest, self.stats, False),
            "Connect": Method(pb.ConnectRequest, self.connect, True),
            "Shutdown": Method(pb.ShutdownRequest, self.shutdown, True),
        }

    def container(self, container_id: str) -> Container:
        """The container of that id. Raises NotFound in containerd's words."""
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFound(f"container {container_id} not created") from None

    def create(self, request: pb.CreateTaskRequest, _call: Call) -> pb.CreateTaskResponse:
        """Create a container."""
        with self._lock:
            if request.id in self.containers or request.id in self._reserved:
                raise AlreadyExists(f"container {request.id} exists")
            self._reserved.add(request.id)
        try:
            with self.host.reaper.early():
                container = create(self.host, request)
                self._announce(request, container)  # before its exit can be
                self.containers[request.id] = container
                container.watch_init()
        finally:
            self._reserved.discard(request.id)
        return pb.CreateTaskResponse(pid=container.init.pid)

    def start(self, request: pb.StartRequest, call: Call) -> pb.StartResponse:
        """Start init or an exec'd process."""
        container = self.container(request.id)
        if request.exec_id:
            return pb.StartResponse(pid=container.start_exec(request.exec_id))
        return pb.StartResponse(pid=container.start(call.deadline))

    def state(self, request: pb.StateRequest, _call: Call) -> pb.StateResponse:
        """Describe a process."""
        container = self.container(request.id)
        process = container.process(request.exec_id)
        streams = process.streams
        exit = process.exit
        return pb.StateResponse(
            id=request.exec_id or request.id,
            bundle=container.bundle.path,
            pid=process.pid,
            status=container.status(request.exec_id),
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            terminal=streams.terminal,
            exit_status=exit.status if exit else 0,
            exited_at=timestamp(exit.at) if exit else None,
        )

    def wait(self, request: pb.WaitRequest, _call: Call) -> Deferred:
        """Answer when the process ends."""
        process = self.container(request.id).process(request.exec_id)
        deferred = Deferred()

        def ended(exit: Exit) -> None:
            deferred.resolve(pb.WaitResponse(exit_status=exit.status, exited_at=timestamp(exit.at)))

        process.when_ended(ended)
        return deferred

    def kill(self, request: pb.KillRequest, call: Call) -> Empty:
        """Send a signal."""
        container = self.container(request.id)
        container.kill(request.exec_id, request.signal, request.all, call.deadline)
        return Empty()

    def delete(self, request: pb.DeleteRequest, _call: Call) -> pb.DeleteResponse:
        """Remove a container or an exec'd process that has ended."""
        container = self.container(request.id)
        if request.exec_id:
            return _deleted(container.delete_exec(request.exec_id))
        container.delete()
        self.containers.pop(request.id, None)
        return _deleted(container.init)

    def exec(self, request: pb.ExecProcessRequest, _call: Call) -> Empty:
        """Add a process, to be started by Start."""
        if not request.exec_id:
            raise InvalidArgument("exec without an exec id")
        if request.spec is None:
            raise InvalidArgument(f"exec {request.exec_id} without a process spec")
        streams = Streams(request.stdin, request.stdout, request.stderr, request.terminal)
        container = self.container(request.id)
        container.add_exec(request.exec_id, request.spec.value, streams)
        return Empty()

    def resize_pty(self, request: pb.ResizePtyRequest, _call: Call) -> Empty:
        """Set a terminal's size."""
        container = self.container(request.id)
        process = container.process(request.exec_id)
        if request.exec_id and process.exit is not None:
            raise NotFound(f"exec {request.exec_id} has ended")
        process.resize(request.width, request.height)
        return Empty()

    def close_io(self, request: pb.CloseIORequest, _call: Call) -> Empty:
        """Close a process's stdin."""
        process = self.container(request.id).process(request.exec_id)
        if request.stdin:
            process.close_stdin()
        return Empty()

    def pids(self, request: pb.PidsRequest, _call: Call) -> pb.PidsResponse:
        """List the container's processes; exec'd ones say which exec they are."""
        from shim.proto.runc_pb import ProcessDetails

        container = self.container(request.id)
        execs = {process.pid: name for name, process in list(container.execs.items())}
        infos = []
        for pid in container.pids():
            info = pb.ProcessInfo(pid=pid)
            if execs.get(pid):
                info.info = pack(ProcessDetails(exec_id=execs[pid]))
            infos.append(info)
        return pb.PidsResponse(processes=infos)

    def pause(self, request: pb.PauseRequest, _call: Call) -> Empty:
        """Freeze a container."""
        self.container(request.id).pause()
        return Empty()

    def resume(self, request: pb.ResumeRequest, _call: Call) -> Empty:
        """Thaw a container."""
        self.container(request.id).resume()
        return Empty()

    def checkpoint(self, request: pb.CheckpointTaskRequest, _call: Call) -> Empty:
        """Dump a container to a folder, as `ctr task checkpoint` and kubelet ask for it."""
        from shim.task.checkpointing import checkpoint_to_path

        checkpoint_to_path(self.container(request.id), request)
        self.host.events.publish(
            events_pb.TaskCheckpointed(container_id=request.id, checkpoint=request.path)
        )
        return Empty()

    def update(self, request: pb.UpdateTaskRequest, _call: Call) -> Empty:
        """Change a container's limits."""
        if request.resources is None:
            raise InvalidArgument(f"update of {request.id} without resources")
        if type_name(request.resources).startswith("containerd."):
            raise InvalidArgument(f"resources of type {type_name(request.resources)}")
        self.container(request.id).update(request.resources.value)
        return Empty()

    def stats(self, request: pb.StatsRequest, _call: Call) -> pb.StatsResponse:
        """Measure a container's cgroup."""
        return pb.StatsResponse(stats=pack(self.container(request.id).cgroup().stats()))

    def connect(self, request: pb.ConnectRequest, _call: Call) -> pb.ConnectResponse:
        """Say who we are; an unknown container is no error here."""
        container = self.containers.get(request.id)
        task_pid = container.init.pid if container else 0
        return pb.ConnectResponse(shim_pid=os.getpid(), task_pid=task_pid, version="")

    def shutdown(self, _request: pb.ShutdownRequest, _call: Call) -> Empty:
        """End the shim, but only once the last container is gone."""
        with self._lock:
            empty = not self.containers and not self._reserved
        if empty:
            self._on_shutdown()
        return Empty()

    def _announce(self, request: pb.CreateTaskRequest, container: Container) -> None:
        self.host.events.publish(
            events_pb.TaskCreate(
                container_id=request.id,
                bundle=request.bundle,
                rootfs=request.rootfs,
                io=events_pb.TaskIO(
                    stdin=request.stdin,
                    stdout=request.stdout,
                    stderr=request.stderr,
                    terminal=request.terminal,
                ),
                checkpoint=request.checkpoint,
                pid=container.init.pid,
            )
        )


def _deleted(process: Process) -> pb.DeleteResponse:
    exit = process.exit
    return pb.DeleteResponse(
        pid=process.pid,
        exit_status=exit.status if exit else 0,
        exited_at=timestamp(exit.at if exit else time.time_ns()),
    )
