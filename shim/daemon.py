"""The pod's shim process: puts the rooms together, runs the loop, and leaves nothing behind."""

from __future__ import annotations

import os

from shim import log
from shim.errors import ThawError
from shim.lean import signals
from shim.lean.sockets import Socket
from shim.loop import Loop
from shim.native import set_subreaper
from shim.oom import OomWatch
from shim.proto.events_pb import TaskOOM
from shim.task.control import ControlService
from shim.task.events import Events, Publisher
from shim.task.host import Host
from shim.task.reaper import Reaper
from shim.task.service import NAMES, TaskService
from shim.ttrpc.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.bootstrap import Flags
    from shim.proto.known_pb import Any

FLUSH = 2.0  # seconds for the last events; containerd gives Shutdown three


class Daemon:
    """Everything that lives as long as the pod."""

    def __init__(
        self,
        flags: Flags,
        options: Any | None,
        listener: Socket,
        path: str,
        containerd: int,
    ) -> None:
        if "debug" in flags.switches:
            log.set_level("debug")
        self._path = path
        set_subreaper()
        signals.signal(signals.SIGPIPE, signals.SIG_IGN)
        for signum in (signals.SIGTERM, signals.SIGINT):
            signals.signal(signum, self._terminated)
        _settle_in(containerd, options)
        self._loop = Loop()
        self._loop.on_error = log.exception
        reaper = Reaper(self._loop)
        publisher = Publisher(reaper, flags["publish-binary"], flags["address"])
        self._events = Events(flags["namespace"], os.environ.get("TTRPC_ADDRESS", ""), publisher)
        oom = OomWatch(self._loop, self._oom)
        host = Host(
            self._loop, reaper, self._events, oom, flags["namespace"], path, flags["address"]
        )
        self._service = TaskService(host, self._shutdown)
        methods = self._service.methods()
        services = dict.fromkeys(NAMES, methods)
        control = ControlService(self._service)
        services[control.NAME] = control.methods()
        self._server = Server(self._loop, listener, services, log.exception)

    def run(self) -> None:
        """Serve until the pod is over, then remove the socket."""
        self._loop.run()
        self._server.close()

    def _shutdown(self) -> None:
        self._server.drain(self._finish)

    def _finish(self) -> None:
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        self._events.flush(FLUSH)
        self._loop.stop()

    def _oom(self, container_id: str) -> None:
        self._events.publish(TaskOOM(container_id=container_id))

    def _terminated(self, signum: int, _frame: object) -> None:
        # A shim that goes takes its pod along: containerd would run `delete` for every container.
        if self._service.containers:
            log.warning("signal ignored, the pod still runs", signal=signum)
        else:
            self._finish()


def _settle_in(containerd: int, options: Any | None) -> None:
    """Our place among processes: cgroup, OOM score, core scheduling. None of it is fatal."""
    steps: tuple[Callable[[], None], ...] = (
        lambda: _join_cgroup(options),
        lambda: _raise_oom_score(containerd),
        _share_a_core,
    )
    for step in steps:
        try:
            step()
        except (ThawError, OSError) as error:
            log.warning("settling in", error=error)


def _join_cgroup(options: Any | None) -> None:
    from shim.task.options import configuration

    path = configuration(options).text("ShimCgroup")
    if path:
        from shim.cgroup import of_spec

        of_spec(path, "shim", False).add(os.getpid())


def _share_a_core() -> None:
    if os.environ.get("SCHED_CORE"):
        from shim.native import create_core_cookie

        create_core_cookie()


def _raise_oom_score(containerd: int) -> None:
    """One more than containerd's: the kernel shall take a shim before it takes containerd."""
    with open(f"/proc/{containerd}/oom_score_adj") as file:
        score = min(1000, int(file.read()) + 1)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(score))
