"""The engine process: one request on its socket, one answer, and it is over.

    engine.py [restore]   the request comes on descriptor 3, with the container's streams; what a
                          restore needs is imported before it comes
    engine.py undo FILE   remove what an engine that died had made (see work.Work.remember)

One that is started for a pod's sandbox is told first what to read ahead; it is asked again if the
first container was not the one that the snapshot is of, and told to give way if that has a GPU.
One that has waited until a worker is warm is then asked to dump it.

It may import what it likes and take the memory it needs. It ends, with everything it has started,
when the daemon closes the socket or dies.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.insert(0, __file__.rpartition("/")[0].rpartition("/")[0])

import gc
import json
import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from shim.config import Config
from shim.errors import GpuLost, OtherContainer, ThawError
from shim.work import Work

if TYPE_CHECKING:
    from shim.checkpoint.auto import Making
    from shim.restore.adoption import Adoption
    from shim.restore.bulk import ReadAhead
    from shim.restore.device import Device

SOCKET_FD = 3
STREAMS = 8  # descriptors that may come with a request
_TOLD = ("read-ahead", "give-way")  # want no answer


def main(arguments: list[str]) -> int:
    """Serve the one request; the exit status says whether it went well."""
    begun = Begun()
    # cuFile writes a log wherever it is (shim/gpu/memory/cufile.py). Now, as no thread may look
    # something up in the environment while it changes.
    os.environ.setdefault("CUFILE_LOGFILE_PATH", os.devnull)
    if arguments[:1] == ["undo"]:
        with open(arguments[1]) as file:
            request = json.load(file)
        return 0 if "error" not in _answer(request, (), begun) else 1
    # runc and CRIU inherit it on purpose: should we be killed over a dump, the daemon hears of
    # it when CRIU, too, is done, and does not thaw what CRIU has frozen.
    daemon = socket.socket(fileno=SOCKET_FD)
    # Two descriptors for each file of pages and one for each task: more than the usual 1024 at
    # times. runc raises its own limit as Go does, CRIU too; what is restored gets its image's.
    # CRIU sets a thread's groups only if it had some (rst_prep_creds_args, criu/cr-restore.c): one
    # without any would get ours, which are those of whoever has started containerd.
    os.setgroups([])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    threading.Thread(target=_end_with, args=(daemon, begun), daemon=True).start()
    requests = _Requests(daemon)
    if arguments[:1] == ["restore"]:
        _preload(requests)
    return _serve(requests, daemon, begun)


class Begun:
    """What this process has begun, before it was told to or while it does it."""

    def __init__(self) -> None:
        self.making: list[Making] = []
        self.ends: list[Callable[[], None]] = []  # called when we are to end over our work

    @cached_property
    def ahead(self) -> ReadAhead:
        """The memory of a restore to come."""
        from shim.restore.bulk import ReadAhead

        return ReadAhead()

    @cached_property
    def adoption(self) -> Adoption:
        """The rest of it."""
        from shim.restore.adoption import Adoption

        return Adoption()

    @cached_property
    def device(self) -> Device:
        """The driver, once it is known to be needed."""
        from shim.restore.device import Device

        return Device()

    def release(self) -> None:
        """Let others make the snapshot."""
        for one in self.making:
            one.release()

    def end(self) -> None:
        """End what would outlive us."""
        for one in self.ends:
            one()

    def finish(self) -> None:
        """Put away what a restore has used."""
        if "adoption" in vars(self):
            self.adoption.finish()


def _preload(requests: _Requests) -> None:
    """Pay for a restore's imports while the request is still on its way.

    This process makes one restore and ends, so garbage is not looked for. If it is, imports take
    1.09 times as long and a plan 1.05 (CPython 3.11, 160 pairs, a worker of 216 threads).
    """
    gc.disable()
    first = requests.waiting()
    if first:
        from shim.restore.waking import wake

        wake(first)

    import shim.restore.engine  # noqa: F401


def _serve(requests: _Requests, daemon: socket.socket, begun: Begun) -> int:
    while True:
        request, fds = requests.next()
        if request["verb"] == "read-ahead":  # what is wrong, the restore will say
            begun.adoption.start(Config(request["config"]))  # before we volunteer to be killed
            begun.ahead.begin(request, begun.device.expect)
            continue
        if request["verb"] == "give-way":
            if "device" in vars(begun):
                begun.device.close()
            continue
        if "ahead" in vars(begun):
            begun.ahead.called()
        answer = _answer(request, fds, begun)
        goes_on = request["verb"] == "await" and answer.get("name")
        if not goes_on:
            begun.release()  # before the answer: the daemon may end us as soon as it has it
        daemon.sendall(json.dumps(answer).encode() + b"\n")
        if goes_on:
            continue
        if answer.get("error", {}).get("class") != OtherContainer.__name__:
            begun.finish()
            return 1 if "error" in answer else 0
        for fd in fds:  # what was read ahead is for another container of the pod
            os.close(fd)


class _Requests:
    """The lines that come from the daemon, each with the descriptors that came along."""

    def __init__(self, daemon: socket.socket) -> None:
        self._daemon = daemon
        self._buffer = b""
        self._fds: list[int] = []

    def pending(self) -> bool:
        """Whether there is another one, or at least its beginning."""
        return bool(self._buffer or select.select([self._daemon], [], [], 0)[0])

    def waiting(self) -> dict[str, Any]:
        """What is to be read ahead, if that has come already; it stays the next one."""
        if not self.pending():
            return {}
        self._receive()
        line, _, _ = self._buffer.partition(b"\n")
        request: dict[str, Any] = json.loads(line)
        return request if request["verb"] == "read-ahead" else {}

    def next(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The next one. Ends the process if there is none: we were not needed after all."""
        self._receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        request: dict[str, Any] = json.loads(line)
        if request["verb"] in _TOLD:
            return request, ()  # has none: they are the next request's
        fds, self._fds = self._fds, []
        return request, tuple(fds)

    def _receive(self) -> None:
        while b"\n" not in self._buffer:
            data, fds, _, _ = socket.recv_fds(self._daemon, 65536, STREAMS)
            if not data:
                os._exit(0)  # there may be threads at work that must not see the end of Python
            for fd in fds:
                os.set_inheritable(fd, False)
            self._buffer += data
            self._fds += fds


def _end_with(daemon: socket.socket, begun: Begun) -> None:
    """The socket is our lifeline: when it closes, we and all that we started go."""
    poll = select.poll()
    poll.register(daemon, select.POLLRDHUP)
    poll.poll()
    begun.release()
    begun.end()
    os.killpg(0, signal.SIGKILL)


def _answer(request: Mapping[str, Any], fds: tuple[int, ...], begun: Begun) -> dict[str, Any]:
    try:
        verb = _verb(request["verb"], begun)
        return verb(Work.parse(request, fds))
    except ThawError as error:
        return _error(type(error).__name__, error.message, error.hint)
    except OSError as error:
        return _error("Unknown", str(error), "")
    except Exception as error:  # noqa: BLE001 - the daemon must hear of everything
        import traceback

        return _error("Unknown", f"{type(error).__name__}: {error}", traceback.format_exc(limit=-6))


def _verb(name: str, begun: Begun) -> Callable[[Work], dict[str, Any]]:
    """What a verb does. Each imports what it needs: a pod waits for a restore's, and no others."""
    if name == "restore":
        from shim.restore.engine import restore
        from shim.restore.source import located

        return lambda work: restore(located(work), begun.ahead, begun.adoption, begun.device)
    if name == "undo":
        from shim.restore.engine import undo

        return undo
    if name == "checkpoint":
        return lambda work: _checkpoint(work, begun)
    if name == "end-trial":
        from shim.trial.engine import remove

        return remove
    if name == "resume":
        from shim.checkpoint.quiet import resume

        return resume
    if name == "await":
        return lambda work: _await(work, begun)
    if name == "pull":
        from shim.restore.source import pull

        return pull
    raise ValueError(f"no verb {name!r}")


def _checkpoint(work: Work, begun: Begun) -> dict[str, Any]:
    from shim.checkpoint.engine import checkpoint

    try:
        return checkpoint(work, begun.ends)
    except GpuLost as error:
        for one in begun.making:
            one.lose(work, error)
        raise


def _await(work: Work, begun: Begun) -> dict[str, Any]:
    from shim.checkpoint.auto import Making

    begun.making.append(Making())
    return begun.making[-1].wait(work)


def _error(leaf: str, message: str, hint: str) -> dict[str, Any]:
    return {"error": {"class": leaf, "message": message, "hint": hint}}


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # the daemon has its answer; taking down what there is would only take time
