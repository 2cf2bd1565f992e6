"""Thaw's own service on the shim's socket, for `thaw checkpoint`."""

from __future__ import annotations

from shim.proto.control_pb import CheckpointRequest
from shim.ttrpc.server import Method

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.proto.control_pb import CheckpointResponse
    from shim.task.service import TaskService
    from shim.ttrpc.server import Call


class ControlService:
    """What the Task service has no word for."""

    NAME = "thaw.v1.Control"

    def __init__(self, tasks: TaskService) -> None:
        self._tasks = tasks

    def methods(self) -> Mapping[str, Method]:
        """The RPC table."""
        return {"Checkpoint": Method(CheckpointRequest, self.checkpoint, False)}

    def checkpoint(self, request: CheckpointRequest, _call: Call) -> CheckpointResponse:
        """Make a snapshot of a running container under a name."""
        from shim.task.checkpointing import checkpoint_to_name

        return checkpoint_to_name(self._tasks.container(request.id), request)
