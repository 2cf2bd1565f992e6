"""What every container of a pod shares inside its shim."""

from __future__ import annotations

from shim.task.engine import Engines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.loop import Loop
    from shim.oom import OomWatch
    from shim.task.events import Events
    from shim.task.reaper import Reaper


class Host:
    """The daemon's services: loop, reaper, event queue, OOM watch, and who we are."""

    __slots__ = (
        *("engines", "events", "grpc_address", "loop", "lost", "namespace", "oom", "reaper"),
        "socket",
    )

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        events: Events,
        oom: OomWatch,
        namespace: str,
        socket: str,
        grpc_address: str,
    ) -> None:
        self.loop = loop
        self.reaper = reaper
        self.events = events
        self.engines = Engines(loop, reaper)
        self.lost: set[str] = set()  # containers whose worker was lost over its snapshot
        self.oom = oom
        self.namespace = namespace
        self.socket = socket  # path of the shim's own socket
        self.grpc_address = grpc_address  # containerd's, for the engine
