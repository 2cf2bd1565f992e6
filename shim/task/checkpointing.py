"""Dumping a container, for `thaw checkpoint` (into the store) and Task.Checkpoint (into a folder).

The work is the engine's; here stand who may, and what remains of a failure: CRIU's own log is
kept in the bundle as `criu-dump.log`.
"""

from __future__ import annotations

import os

from shim import log
from shim.bundle import annotations_of
from shim.conduct import actions
from shim.errors import (
    Cancelled,
    FailedPrecondition,
    GpuLost,
    InvalidArgument,
    RestoreFailed,
    ThawError,
    Unimplemented,
    WorkerFailed,
)
from shim.proto.control_pb import CheckpointResponse
from shim.reference import check_name
from shim.task.engine import Engine
from shim.task.restoration import UNDO_TIMEOUT, describe
from shim.task.state import PAUSED, RUNNING
from shim.trial import REQUEST, folder_of

RESTORED = "restored"  # as the engine says it, see checkpoint/verifying.py

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
    _check_resumed(reply)
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
    _check_resumed(dump(container, work))


def dump(
    container: Container, work: dict[str, Any], engine: Engine | None = None
) -> dict[str, Any]:
    """Have an engine, a new one by default, dump a container, and let the container go on.

    Answers what shim.checkpoint.engine does; `unresumed` says so if the snapshot is made, but the
    worker could not be resumed.
    """
    with container.verbs:
        container.state.check_checkpoint()
        _check_actions(container)
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
            container.dumping.begin(engine, unasked="by" in work)
            return _asked(container, engine, request)
        finally:
            container.dumping.done()
            engine.close()


def _asked(container: Container, engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """The engine's reply. Should it fail, the container goes on, and is awake if it can be."""
    try:
        reply = engine.ask(request, [], None)
    except ThawError as error:
        _say_lost(container, error)
        _thaw(container)
        _end_trial(container)
        # It died or was ended before CRIU began, and nobody else gives the worker back what it
        # had: only the driver knows what is missing.
        if isinstance(error, (RestoreFailed, Cancelled)):
            _resume(container)
        raise
    _say_verified(container, reply.get("verified", ""))
    _say_moved(container, reply.get("gpu") or {})
    if reply.get("refused"):
        log.info("dumped by CRIU alone", container=container.id, because=reply["refused"])
    return reply


def _say_lost(container: Container, error: ThawError) -> bool:
    """Nobody who looks at a container's exit alone could know why."""
    if not isinstance(error, GpuLost):
        return False
    log.error("a worker is lost over its snapshot", container=container.id, error=error)
    return True


def _say_moved(container: Container, words: dict[str, str]) -> None:
    """What of its GPU memory was moved past the driver, and why the rest was not."""
    if words:
        log.info("GPU memory dumped", container=container.id, **words)


def _check_actions(container: Container) -> None:
    """Raise what keeps the engine from doing what is to be done to the worker."""
    acts = actions(annotations_of(container.bundle.spec()))
    if container.state.status == PAUSED and (acts.quiesce or acts.resume):
        raise FailedPrecondition(
            f"container {container.id} is paused, and its worker can do nothing",
            hint="thaw.dev/quiesce and thaw.dev/resume need it to run",
        )


def _check_resumed(reply: dict[str, Any]) -> None:
    if reply.get("unresumed"):
        raise WorkerFailed(
            f"the snapshot {reply['path']} is made, but {reply['unresumed']}",
            hint="see thaw.dev/resume",
        )


def _resume(container: Container) -> None:
    """Have the worker resumed whose dump was broken off when it may have been quiet.

    Only the driver can tell whether its GPU state was taken away, so it is always looked.
    """
    if container.state.status != RUNNING:
        return
    engine = Engine(container.host.reaper, container.runc.env)
    try:
        container.dumping.begin(engine)
        request = {**describe(container, container.host), "verb": "resume"}
        engine.ask({**request, "pid": container.init.pid}, [], None)
    except Cancelled:
        log.debug("not resumed, the container is over", container=container.id)
    except ThawError as error:
        if not _say_lost(container, error):
            log.warning("worker not resumed", container=container.id, error=error)
    finally:
        engine.close()


def _say_verified(container: Container, became: str) -> None:
    if became == RESTORED:
        log.info("snapshot verified", container=container.id)
    elif became:
        log.warning("snapshot not verified", container=container.id, because=became)


def _end_trial(container: Container) -> None:
    """Remove what an engine that was killed has left of the container beside this one."""
    if not os.path.lexists(f"{folder_of(container.folder)}/{REQUEST}"):
        return
    engine = Engine(container.host.reaper, container.runc.env)
    try:
        request = {**describe(container, container.host), "verb": "end-trial"}
        engine.ask(request, [], UNDO_TIMEOUT)
    except ThawError as error:
        log.error("a trial could not be undone", container=container.id, error=error)
    finally:
        engine.close()


def _thaw(container: Container) -> None:
    """Let a running container go on, should a dump that was broken off have left it frozen."""
    if container.state.status == RUNNING:
        try:
            container.runc.resume()
        except ThawError as error:
            log.debug("nothing to thaw", container=container.id, error=error)
