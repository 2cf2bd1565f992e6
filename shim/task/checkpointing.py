"""Dumping a container, for `thaw checkpoint` (into the store) and Task.Checkpoint (into a folder).

The work is the engine's; here stand who may, and what remains of a failure: CRIU's own log is
kept in the bundle as `criu-dump.log`.
"""

from __future__ import annotations

from shim import log
from shim.errors import FailedPrecondition, InvalidArgument, ThawError, Unimplemented
from shim.proto.control_pb import CheckpointResponse
from shim.reference import check_name
from shim.task.engine import Engine
from shim.task.restoration import describe
from shim.task.state import RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.proto.control_pb import CheckpointRequest
    from shim.proto.task_pb import CheckpointTaskRequest
    from shim.task.container import Container


def checkpoint_to_name(container: Container, request: CheckpointRequest) -> CheckpointResponse:
    """Make the snapshot `request.name` of a container; it runs on unless `request.exit`."""
    work = {
        "name": check_name(request.name),
        "path": "",
        "exit": request.exit,
        "replace": request.replace,
        "shared": request.shared,
    }
    if container.shares_pids:
        raise FailedPrecondition(
            f"container {container.id} shares a pid namespace",
            hint="a restored process cannot get its pids back there",
        )
    reply = dump(container, work)
    return CheckpointResponse(
        path=reply["path"],
        bytes=reply["bytes"],
        seconds=reply["seconds"],
        frozen=reply["frozen"],
    )


def checkpoint_to_path(container: Container, request: CheckpointTaskRequest) -> None:
    """Dump into the folder that containerd named; it makes an image of what is there then."""
    from shim.proto.known import type_name, unpack
    from shim.proto.runc_pb import CheckpointOptions

    options = CheckpointOptions()
    if request.options is not None and type_name(request.options) == CheckpointOptions.TYPE:
        options = unpack(request.options, CheckpointOptions)
    if options.empty_namespaces:
        raise Unimplemented("checkpoint with empty namespaces", hint="leave the option out")
    path = options.image_path or request.path
    if not path.startswith("/"):
        raise InvalidArgument(f"checkpoint of {container.id} into {path!r}: not a path")
    work = {"name": "", "path": path, "exit": options.exit, "work_path": options.work_path}
    if options.cgroups_mode:
        work["cgroups_mode"] = options.cgroups_mode
    dump(container, work)


def dump(
    container: Container, work: dict[str, Any], engine: Engine | None = None
) -> dict[str, Any]:
    """Have an engine, a new one by default, dump a container, and let the container go on."""
    with container.verbs:
        container.state.check_checkpoint()
        request = {**describe(container, container.host), **work}
        request["verb"] = "checkpoint"
        request["pid"] = container.init.pid
        request["cgroup_pids"] = container.pids()
        # A CRIU that is killed leaves its tasks frozen and their network locked. If the engine
        # dies, CRIU hears nothing at its post-dump stage and takes everything back by itself; and
        # a caller that is out of patience does not end the dump.
        if engine is None:
            engine = Engine(container.host.reaper, container.runc.env, children_go_too=False)
        try:
            reply = engine.ask(request, [], None)
            if reply.get("refused"):
                log.info("dumped by CRIU alone", container=container.id, because=reply["refused"])
            return reply
        except ThawError:
            _thaw(container)
            raise
        finally:
            engine.close()


def _thaw(container: Container) -> None:
    """Let a running container go on, should a dump that was broken off have left it frozen."""
    if container.state.status == RUNNING:
        try:
            container.runc.resume()
        except ThawError as error:
            log.debug("nothing to thaw", container=container.id, error=error)
