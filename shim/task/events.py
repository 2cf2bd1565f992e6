"""Events to containerd, in the order in which they happened.

One queue and one sender per shim, because order is part of the contract (create < start < exit <
delete). An event goes by ttrpc to containerd's event service; if that is not there, through the
publish program that containerd named. Retries follow containerd's own shim: 5 s per try, a new
connection after a broken one, 5 more tries 1 to 5 s apart, then the event is dropped and logged.
"""

from __future__ import annotations

import os
import time

from shim import log
from shim.errors import ThawError
from shim.lean.queues import deque
from shim.lean.threads import Condition, start
from shim.proto import events_pb as pb
from shim.proto.known import now, pack, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.proto.wire import Message
    from shim.task.reaper import Exit, Reaper
    from shim.ttrpc.client import Client

TRIES = 6
TIMEOUT = 5.0  # seconds for one try
IDLE = 1.0  # seconds after which the sender thread ends, so that an idle shim has one thread

SERVICE = "containerd.services.events.ttrpc.v1.Events"

TOPICS = {
    pb.TaskCreate: "/tasks/create",
    pb.TaskStart: "/tasks/start",
    pb.TaskExit: "/tasks/exit",
    pb.TaskDelete: "/tasks/delete",
    pb.TaskOOM: "/tasks/oom",
    pb.TaskExecAdded: "/tasks/exec-added",
    pb.TaskExecStarted: "/tasks/exec-started",
    pb.TaskPaused: "/tasks/paused",
    pb.TaskResumed: "/tasks/resumed",
    pb.TaskCheckpointed: "/tasks/checkpointed",
}


class Events:
    """The queue. `publish` never blocks; `flush` waits until everything has been sent."""

    def __init__(self, namespace: str, ttrpc_address: str, publisher: Publisher) -> None:
        self._namespace = namespace
        self._address = ttrpc_address
        self._publisher = publisher
        self._queue: deque[pb.Envelope] = deque()
        self._changed = Condition()
        self._sending = False
        self._client: Client | None = None

    def publish(self, event: Message) -> None:
        """Queue an event."""
        envelope = pb.Envelope(
            timestamp=now(),
            namespace=self._namespace,
            topic=TOPICS[type(event)],
            event=pack(event),
        )
        with self._changed:
            self._queue.append(envelope)
            if not self._sending:
                self._sending = True
                start(self._send_all)
            self._changed.notify_all()

    def publish_exit(self, container_id: str, process_id: str, pid: int, exit: Exit) -> None:
        """Queue a TaskExit; `process_id` is the exec id, or the container's for init."""
        self.publish(
            pb.TaskExit(
                container_id=container_id,
                id=process_id,
                pid=pid,
                exit_status=exit.status,
                exited_at=timestamp(exit.at),
            )
        )

    def flush(self, seconds: float) -> bool:
        """Wait until the queue is empty; False if that took longer than `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, seconds)

    def _send_all(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: bool(self._queue), IDLE):
                    self._sending = False
                    self._disconnect()
                    return
                envelope = self._queue[0]
            self._send(envelope)
            with self._changed:
                self._queue.popleft()
                self._changed.notify_all()

    def _send(self, envelope: pb.Envelope) -> None:
        problem: Exception | None = None
        for attempt in range(TRIES):
            if attempt:
                time.sleep(attempt)
            try:
                self._forward(envelope)
                return
            except (ThawError, OSError) as error:
                problem = error
                self._disconnect()
                if self._publisher.publish(envelope):
                    return
        log.error("event was not delivered", topic=envelope.topic, error=problem)

    def _forward(self, envelope: pb.Envelope) -> None:
        from shim.proto.known_pb import Empty
        from shim.ttrpc.client import Client

        if self._client is None:
            self._client = Client(self._address)
        request = pb.ForwardRequest(envelope=envelope)
        self._client.call(SERVICE, "Forward", request, Empty, TIMEOUT)

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class Publisher:
    """containerd's publish program, for when its ttrpc socket cannot be reached."""

    def __init__(self, reaper: Reaper, program: str, grpc_address: str) -> None:
        self._reaper = reaper
        self._program = program
        self._address = grpc_address

    def publish(self, envelope: pb.Envelope) -> bool:
        """Hand the event to the program on its stdin; whether it took it."""
        if not self._program or envelope.event is None:
            return False
        argv = [self._program, "--address", self._address, "publish"]
        argv += ["--topic", envelope.topic, "--namespace", envelope.namespace]
        stdin = os.memfd_create("event", os.MFD_CLOEXEC)
        try:
            os.write(stdin, envelope.event.encode())
            os.lseek(stdin, 0, os.SEEK_SET)
            return self._reaper.run(argv, os.environ, {0: stdin}).status == 0
        except OSError:
            return False
        finally:
            os.close(stdin)
