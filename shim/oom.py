"""Out-of-memory kills, noticed on the daemon's loop.

Version 2 counts them in memory.events, whose changes inotify reports: one descriptor for all
containers. Version 1 signals an eventfd per container, but says too much (the group's removal, an
ancestor's limit) and too early (before the kill is counted), so only the counter is believed, and
looked at again shortly after a signal.

The kernel counts a kill before it sends it, so a look at init's exit (`check`) finds it even if the
notice is still under way: the OOM event then goes out before the exit event.
"""

from __future__ import annotations

import os

from shim._native import lib
from shim.cgroup import UNIFIED, below
from shim.native import check as checked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.cgroup import Cgroup
    from shim.loop import Loop

_EPOLLIN = 1
_IN_MODIFY = 2
_EVENT = 16  # bytes of an inotify event without a name; a watched file has none
_LOST = -1  # the watch of the event that says that the queue overflowed
_LOOK_AGAIN = (0.01, 0.1, 1.0)  # seconds after a signal of version 1


class OomWatch:
    """All containers of one daemon; `callback(container_id)` once for each growth of the count.

    Its methods belong to the loop thread, where the callback runs as well.
    """

    def __init__(self, loop: Loop, callback: Callable[[str], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._watches: dict[str, _Version1 | _Version2] = {}
        self._files = _Files(loop)

    def add(self, container_id: str, cgroup: Cgroup) -> None:
        """Watch a container; one without a memory controller cannot run out of memory alone.

        Raises OSError, as for too many watches.
        """
        self.remove(container_id)
        folder = cgroup.paths.get("memory" if cgroup.version == 1 else UNIFIED)
        if folder is None:
            return
        try:
            if cgroup.version == 1:
                watch = _Version1(self._loop, folder, lambda: self._look_again(container_id))
                self._watches[container_id] = watch
            else:
                file = f"{folder}/memory.events"
                changed = lambda: self.check(container_id)  # noqa: E731
                self._watches[container_id] = _Version2(self._files, file, changed)
        except FileNotFoundError:
            pass

    def remove(self, container_id: str) -> None:
        """Stop watching; harmless if it is not watched."""
        watch = self._watches.pop(container_id, None)
        if watch is not None:
            watch.stop()

    def check(self, container_id: str) -> None:
        """Look now, and call back if there was a kill that has not been told yet."""
        watch = self._watches.get(container_id)
        if watch is None:
            return
        before, watch.kills = watch.kills, watch.count()
        if watch.kills > before:
            self._callback(container_id)

    def close(self) -> None:
        """Stop watching anything and close every descriptor."""
        for container_id in list(self._watches):
            self.remove(container_id)
        self._files.close()

    def _look_again(self, container_id: str) -> None:
        self.check(container_id)
        for delay in _LOOK_AGAIN:
            self._loop.call_later(delay, lambda: self.check(container_id))


class _Version1:
    """The counters of a group and those below it, and an eventfd that says when to look."""

    def __init__(self, loop: Loop, folder: str, signalled: Callable[[], None]) -> None:
        self._loop = loop
        self._folder = folder
        self._signalled = signalled
        self._eventfd = _memory_eventfd(folder)
        self.kills = self.count()
        loop.watch(self._eventfd, _EPOLLIN, self._ready)

    def count(self) -> int:
        # A kill is counted in the victim's own group alone, which may be one below.
        return sum(_kills(f"{group}/memory.oom_control") for group in below(self._folder))

    def stop(self) -> None:
        self._loop.unwatch(self._eventfd)
        os.close(self._eventfd)

    def _ready(self, _mask: int) -> None:
        os.eventfd_read(self._eventfd)
        if os.path.isdir(self._folder):  # its removal signals as well
            self._signalled()


class _Version2:
    """The counter of a group, which includes those below it, and a watch on its file."""

    def __init__(self, files: _Files, path: str, changed: Callable[[], None]) -> None:
        self._files = files
        self._path = path
        self._number = files.add(path, changed)
        self.kills = self.count()

    def count(self) -> int:
        return _kills(self._path)

    def stop(self) -> None:
        self._files.remove(self._number)


class _Files:
    """Changes of files, by one inotify descriptor that is made when it is first needed."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._fd = -1
        self._callbacks: dict[int, Callable[[], None]] = {}

    def add(self, path: str, changed: Callable[[], None]) -> int:
        if self._fd < 0:
            self._fd = checked(lib.thaw_inotify_init(), "inotify")
            self._loop.watch(self._fd, _EPOLLIN, self._ready)
        number = checked(lib.thaw_inotify_add(self._fd, os.fsencode(path), _IN_MODIFY), "", path)
        self._callbacks[number] = changed
        return number

    def remove(self, number: int) -> None:
        self._callbacks.pop(number, None)
        lib.thaw_inotify_remove(self._fd, number)  # fails if the file went first

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ready(self, _mask: int) -> None:
        events = os.read(self._fd, 4096)
        starts = range(0, len(events), _EVENT)
        numbers = {int.from_bytes(events[at : at + 4], "little", signed=True) for at in starts}
        for number in list(self._callbacks) if _LOST in numbers else numbers:
            changed = self._callbacks.get(number)
            if changed is not None:  # the rest of what was queued for a watch that has ended
                changed()


def _memory_eventfd(folder: str) -> int:
    """An eventfd that the kernel signals when the group's memory runs out."""
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        with (
            open(f"{folder}/memory.oom_control", "rb") as control,
            open(f"{folder}/cgroup.event_control", "wb", buffering=0) as register,
        ):
            register.write(f"{eventfd} {control.fileno()}".encode())
    except OSError:
        os.close(eventfd)
        raise
    return eventfd


def _kills(path: str) -> int:
    """The `oom_kill` counter of a file; zero if the group is gone."""
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    except OSError:
        pass
    return 0
