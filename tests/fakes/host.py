"""The daemon's inside without the daemon: a real loop and reaper, and recorders for the rest."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from fakes.settled import PATIENCE
from shim.loop import Loop
from shim.proto import events_pb
from shim.proto.known import timestamp
from shim.proto.wire import Message
from shim.task.host import Host
from shim.task.reaper import Exit, Reaper

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class Thread:
    """A loop on a thread of its own, and what went wrong on it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.errors: list[BaseException] = []
        self.loop.on_error = self.errors.append
        self._thread = threading.Thread(target=self.loop.run)

    def start(self) -> None:
        self._thread.start()

    def do(self, fn: Callable[[], T]) -> T:
        """What `fn` returns on the loop thread, or raises there."""
        outcome: list[T] = []
        failure: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                outcome.append(fn())
            except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
                failure.append(error)
            done.set()

        self.loop.call_soon(run)
        assert done.wait(PATIENCE)
        if failure:
            raise failure[0]
        return outcome[0]

    def until(self, true: Callable[[], object]) -> None:
        """Return as soon as `true` is true between two rounds of the loop."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.do(true):
                return
        raise AssertionError("it never came true")

    def stop(self) -> None:
        self.loop.stop()
        self._thread.join(PATIENCE)
        self.loop.close()


class Events:
    """Keeps what would have been sent to containerd, in order."""

    def __init__(self) -> None:
        self.all: list[Message] = []
        self._changed = threading.Condition()

    def publish(self, event: Message) -> None:
        with self._changed:
            self.all.append(event)
            self._changed.notify_all()

    def publish_exit(self, container_id: str, process_id: str, pid: int, exit: Exit) -> None:
        self.publish(
            events_pb.TaskExit(
                container_id=container_id,
                id=process_id,
                pid=pid,
                exit_status=exit.status,
                exited_at=timestamp(exit.at),
            )
        )

    def wait_for(self, kind: type[M], number: int = 1) -> M:
        """The `number`th event of that kind, as soon as there is one."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.of(kind)) >= number, PATIENCE)
            return self.of(kind)[number - 1]

    def of(self, kind: type[M]) -> list[M]:
        return [event for event in self.all if isinstance(event, kind)]

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.all]


class Oom:
    """Keeps whom it would have watched."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def add(self, container_id: str, _cgroup: object) -> None:
        self.calls.append(("add", container_id))

    def remove(self, container_id: str) -> None:
        self.calls.append(("remove", container_id))

    def check(self, container_id: str) -> None:
        self.calls.append(("check", container_id))


class Node(Thread):
    """A Host with a reaper in this process; `close` puts everything back and ends its children."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from shim.native import set_subreaper

        self._handler = signal.getsignal(signal.SIGCHLD)
        self._others = set(children())
        self.folder = folder
        self.events = Events()
        self.oom = Oom()
        set_subreaper()
        self.reaper = Reaper(self.loop)
        events: Any = self.events
        oom: Any = self.oom
        self.host = Host(self.loop, self.reaper, events, oom, "test", str(folder / "shim.sock"), "")
        self.start()

    def stop(self) -> None:
        self.until(self._ended)
        wake = signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, self._handler)
        super().stop()
        os.close(wake)
        os.close(self.reaper._read)

    def _ended(self) -> bool:
        # On the loop thread, where they are reaped: none of these pids can be a stranger's. Those
        # that a child leaves behind come to us when it has ended, so this is done until none is.
        left = self._children()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return not left

    def _children(self) -> set[int]:
        return set(children()) - self._others


def children() -> list[int]:
    """Every child of this process."""
    found: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        try:
            found += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
        except OSError:
            continue
    return found


def open_fds(ignore: Iterable[int] = ()) -> set[int]:
    """The open descriptors of this process."""
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_open(fd)} - set(ignore)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
