"""The daemon's side of an engine process: start it, ask it one thing, end it.

Heavy work (planning, copying, CRIU's supervision, everything with large imports) happens there,
so that the shim stays small. The engine is executed afresh, leads a process group of its own and
inherits nothing but its socket; it ends when that socket closes.
"""

from __future__ import annotations

import os
import sys

from shim import errors
from shim.errors import Cancelled, DeadlineExceeded, RestoreFailed, ThawError
from shim.lean import jsons
from shim.lean.sockets import SHUT_RDWR, pair, send_fds
from shim.lean.threads import Event, Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from shim.loop import Loop
    from shim.task.reaper import Exit, Reaper

PROGRAM = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/engine.py"
SOCKET_FD = 3
SPARE = 120.0  # seconds that an engine waits for its container; kubelet's own patience


class Engine:
    """A running engine process. `ask` blocks; `kill` may be called from any thread."""

    def __init__(
        self,
        reaper: Reaper,
        env: Mapping[str, str],
        *,
        program: str = "",
        children_go_too: bool = True,
        restores: bool = False,
    ) -> None:
        self._children_go_too = children_go_too  # what it has started, if it dies over that
        self._reaper = reaper
        self._killed = False
        self._left = False
        self._said = b""  # beyond the line that was wanted
        self._ended = Event()
        self._socket, theirs = pair()
        try:
            argv = [sys.executable, "-IS", program or PROGRAM, *(["restore"] if restores else [])]
            fds = {SOCKET_FD: theirs.fileno()}
            self.pid = reaper.start(argv, env, fds, self._exited, group=True)
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()

    def ask(
        self, request: Mapping[str, Any], fds: Sequence[int], seconds: float | None
    ) -> dict[str, Any]:
        """Send one request with descriptors and return the answer.

        Raises what the engine raised, Cancelled after `kill`, DeadlineExceeded after `seconds`,
        RestoreFailed if it died.
        """
        line = jsons.dumps(request) + b"\n"
        try:
            send_fds(self._socket, line[:1], list(fds))
            self._socket.sendall(line[1:])
            answer = self._read_line(seconds)
        except TimeoutError:
            raise DeadlineExceeded(
                f"not done within {seconds:.1f} s", hint="see restore.deadline"
            ) from None
        except OSError as error:
            answer = b""
            if not self._killed:
                raise RestoreFailed(f"the engine process broke off: {error}") from error
        if self._killed:
            raise Cancelled("cancelled by Kill or Delete")
        if not answer:
            raise RestoreFailed("the engine process died", hint="was it killed for memory?")
        reply: dict[str, Any] = jsons.loads(answer)
        if "error" in reply:
            raise rebuilt(reply["error"])
        return reply

    def tell(self, request: Mapping[str, Any]) -> None:
        """Send what wants no answer; nothing happens if it has died."""
        try:
            self._socket.sendall(jsons.dumps(request) + b"\n")
        except OSError:
            pass

    def give_way(self) -> None:
        """Let it take no GPU memory before it is asked, and let go of what it has.

        Another container gets the GPU first.
        """
        self.tell({"verb": "give-way"})

    def listen(self) -> dict[str, Any] | None:
        """What it says next without being asked; None when it has ended, or shall."""
        try:
            line = self._read_line(None)
        except OSError:
            return None
        said: dict[str, Any] | None = jsons.loads(line) if line else None
        return said

    def kill(self) -> None:
        """End it and whatever it has started in its process group."""
        self._killed = True
        self._reaper.kill(self.pid, 9, group=True)
        self.dismiss()

    def dismiss(self) -> None:
        """Let it know that it is not needed any longer: it puts away what it has, and ends."""
        self._killed = True
        try:
            self._socket.shutdown(SHUT_RDWR)  # wakes `ask`
        except OSError:
            pass

    def wait(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        return self._ended.wait(seconds)

    @property
    def alive(self) -> bool:
        """Whether it has neither ended nor been told to."""
        return not self._killed and not self._ended.is_set()

    def leave(self) -> None:
        """Let it end when it is done: its socket stays open until then."""
        self._left = True
        if self._ended.is_set():
            self._socket.close()

    def release(self) -> None:
        """Make it end, without waiting for that."""
        self._socket.close()

    def close(self) -> None:
        """Let it end, and wait for that."""
        self.release()
        if not self._ended.wait(2.0):
            self.end()

    def end(self) -> None:
        """Make it end, with whatever it has started, and wait for that."""
        self.kill()
        self._ended.wait(2.0)

    def _read_line(self, seconds: float | None) -> bytes:
        import time

        end = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._said:
            self._socket.settimeout(None if end is None else max(0.001, end - time.monotonic()))
            chunk = self._socket.recv(65536)
            if not chunk:
                return b""
            self._said += chunk
        line, _, self._said = self._said.partition(b"\n")
        return line

    def _exited(self, _exit: Exit) -> None:
        try:
            if self._children_go_too:
                os.killpg(self.pid, 9)
        except (ProcessLookupError, PermissionError):
            pass
        self._ended.set()
        if self._left:
            self._socket.close()


class Engines:
    """Engines started ahead of need: when the sandbox is made, the snapshots are known.

    Their imports (100 ms) and their reading run while kubelet still prepares the containers.
    """

    def __init__(self, loop: Loop, reaper: Reaper) -> None:
        self._loop = loop
        self._reaper = reaper
        self._lock = Lock()
        self._spare: dict[str, _Spare] = {}  # by the name of the snapshot

    def warm(
        self,
        env: Mapping[str, str],
        names: Sequence[str],
        config: Mapping[str, Any],
        namespace: str = "",
    ) -> None:
        """Start one for each of these snapshots; it goes if no container comes for it.

        `namespace` is the pod's, which may not have all of them.
        """
        for name in names:
            engine = Engine(self._reaper, env, restores=True)
            request = {"name": name, "config": config, "shared_by": len(names)}
            engine.tell({"verb": "read-ahead", "namespace": namespace, **request})
            self._end(self._keep(engine, name))

    def cool(self, names: Sequence[str]) -> None:
        """Nobody will come for these."""
        for name in names:
            with self._lock:
                spare = self._spare.pop(name, None)
            if spare is not None:
                spare.let_go()

    def others(self, name: str) -> list[Engine]:
        """Those that wait for a container of any other snapshot."""
        with self._lock:
            return [spare.engine for other, spare in self._spare.items() if other != name]

    def take(self, env: Mapping[str, str], name: str) -> Engine:
        """The spare one for that snapshot, or a new one."""
        with self._lock:
            spare = self._spare.pop(name, None)
        if spare is not None:
            if spare.engine.alive:
                return spare.engine
            spare.engine.release()
        return Engine(self._reaper, env, restores=True)

    def give_back(self, engine: Engine, name: str) -> None:
        """Keep it for another container, unless there is one already; it goes if none comes."""
        with self._lock:
            there = self._spare.get(name)
        if there is not None and there.engine.alive:
            self._end(_Spare(engine))
        else:
            self._end(self._keep(engine, name))

    def _keep(self, engine: Engine, name: str) -> _Spare | None:
        """Make it the spare one; the one before it."""
        spare = _Spare(engine)
        with self._lock:
            before, self._spare[name] = self._spare.get(name), spare
        self._loop.call_later(SPARE, lambda: self._drop(spare, name))
        return before

    def _end(self, spare: _Spare | None) -> None:
        if spare is not None:
            spare.engine.end()
            spare.engine.release()

    def _drop(self, spare: _Spare, name: str) -> None:
        with self._lock:
            if self._spare.get(name) is not spare:
                return  # taken, and perhaps given back since: then it has another time to go
            del self._spare[name]
        spare.let_go()


class _Spare:
    """One stay of an engine among the spare ones."""

    __slots__ = ("engine",)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def let_go(self) -> None:
        """End it, without waiting for that."""
        self.engine.kill()
        self.engine.release()


def rebuilt(error: Mapping[str, str]) -> ThawError:
    """The error that the engine reported, as the same leaf of the error tree."""
    leaf = getattr(errors, error["class"], errors.Unknown)
    return leaf(error["message"], hint=error["hint"])
