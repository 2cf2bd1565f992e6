"""Actions on a worker: a request to its server, or a command in its container.

A request goes out in the pod's network namespace, so that a pod cannot make the node talk to what
the pod itself cannot reach. A command runs through the runtime, as the container's user. Either has
all its time from the caller, who may rely on it: a server that trickles is cut off, a command that
hangs is killed with what it has started.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from shim.conduct import Action
from shim.errors import WorkerFailed
from shim.namespaces import inside
from shim.runc import Runc
from shim.worker.command import Command
from shim.worker.identity import addresses
from shim.worker.readable import excerpt

LARGEST = 1 << 20  # bytes of an answer
LOOPBACK = ("127.0.0.1", "::1")
_PAUSE = 0.01  # seconds between two attempts to connect, at first …
_PAUSE_MOST = 0.2  # … and after a while
_MOMENT = 0.1  # seconds from a connection's end to that of the process which had it, at most
_NOT_YET = 503  # RFC 9110: the server cannot at present, but will
_WANTED = {"http": "it must be 200 to 299", "exec": "it must be 0"}
_SAYS_MORE = "the worker's own log may say more"
_TAKES_LONGER = "an annotation may give it more time"


@dataclass(frozen=True)
class Answer:
    """What came of an action: an HTTP status, or a command's exit status, and what it said."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Worker:
    """The container that is acted on: its id, the pid of its init, and its runtime."""

    id: str
    pid: int
    runc: Runc

    @property
    def ended(self) -> bool:
        """Whether init is gone, or a zombie."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True

    def ends(self) -> bool:
        """Whether it has ended, or does in a moment: its sockets are closed before it can be seen.

        See the order of exit_task_work() and exit_notify() in the kernel's do_exit().
        """
        last = time.monotonic() + _MOMENT
        while not self.ended and time.monotonic() < last:
            time.sleep(_PAUSE)
        return self.ended


def act(action: Action, worker: Worker, seconds: float) -> None:
    """Do it: a POST that must be answered with 200 to 299, or a command that must exit with 0.

    Raises WorkerFailed with what was answered instead.
    """
    if action.kind == "exec":
        answer = execute(action.target, worker, seconds)
        good = answer.status == 0
    else:
        answer = request(action, worker, seconds, method="POST", body=b"")
        good = 200 <= answer.status < 300
    if not good:
        raise WorkerFailed(
            f"{action}: {_status(action)} {answer.status}: {excerpt(answer.body)}".rstrip(": "),
            hint=_WANTED[action.kind],
        )


def _status(action: Action) -> str:
    return "exit status" if action.kind == "exec" else "answered"


def execute(command: str, worker: Worker, seconds: float, arguments: Sequence[str] = ()) -> Answer:
    """Run a command line in the container, whose $1 … are `arguments`.

    Its exit status, and what it wrote to stdout; if that is nothing and it failed, to stderr.
    Raises WorkerFailed if it takes longer (it is killed then), says more than LARGEST bytes, or
    cannot be run.
    """
    words = ["/bin/sh", "-c", command, "thaw", *arguments]
    what = f"exec:{excerpt(command.encode())}"
    try:
        with Command(
            partial(worker.runc.inside, words), worker.runc.env, worker.runc.folder
        ) as running:
            done = running.wait(seconds, LARGEST)
    except OSError as error:
        name = error.filename or "the runtime"
        raise WorkerFailed(
            f"{what}: cannot run {name}: {error.strerror}", hint="is it in PATH?"
        ) from error
    if done.timed_out:
        raise WorkerFailed(f"{what}: not done after {seconds:g} s, killed", hint=_TAKES_LONGER)
    if done.too_much:
        said = f"{what}: says more than {LARGEST} bytes, killed"
        raise WorkerFailed(said, hint="it can write to a file")
    return Answer(done.status, done.stdout or (done.stderr if done.status else b""))


def request(
    action: Action,
    worker: Worker,
    seconds: float,
    *,
    method: str,
    body: bytes | None = None,
    awaited: int = 0,
) -> Answer:
    """Ask the worker's server, at whatever address of the pod it listens, loopback first.

    A server that does not listen yet, or answers 503 when that is not what is `awaited`, is asked
    again for as long as there is time. Raises WorkerFailed if there is no whole answer.
    """
    attempt = _Attempt(action, method, body, time.monotonic() + seconds)
    pause, seen = _PAUSE, ""
    while True:
        try:
            answer = inside(f"/proc/{worker.pid}/ns/net", "net", attempt.make)
        except (OSError, http.client.HTTPException) as error:
            over = worker.ended if isinstance(error, TimeoutError) else worker.ends()
            gone = f"{worker.id} has ended" if over else ""
            reason = gone or _reason(error, seconds, seen)
            raise WorkerFailed(f"{action}: {reason}", hint=_SAYS_MORE) from error
        if answer is not None and (answer.status != _NOT_YET or awaited == _NOT_YET):
            return answer
        if worker.ended:
            raise WorkerFailed(f"{action}: {worker.id} has ended", hint=_SAYS_MORE)
        seen = "nobody listens" if answer is None else f"answers {answer.status}"
        if time.monotonic() + pause >= attempt.ends:
            raise WorkerFailed(f"{action}: {seen}, for {seconds:g} s", hint=_SAYS_MORE)
        time.sleep(pause)
        pause = min(pause * 1.5, _PAUSE_MOST)


def _reason(error: OSError | http.client.HTTPException, seconds: float, seen: str) -> str:
    if isinstance(error, TimeoutError):
        return f"{seen}, for {seconds:g} s" if seen else f"no answer within {seconds:g} s"
    if isinstance(error, OSError):
        return f"broke off: {error.strerror or error}"
    return f"broke off: {type(error).__name__}"


@dataclass(frozen=True)
class _Attempt:
    """One request, made where the caller is; None as its answer if nobody listens."""

    action: Action
    method: str
    body: bytes | None
    ends: float

    def make(self) -> Answer | None:
        with connection(self.action.port, self.ends) as connected:
            if connected is None:
                return None
            return ask(connected, "localhost", self.method, self.action.path, self.body)


@contextmanager
def connection(port: int, ends: float) -> Iterator[Timed | None]:
    """A connection to the first address of this thread's network namespace that takes one.

    It ends at that moment of the monotonic clock. None if there is no such address. Raises
    TimeoutError if that moment comes first.
    """
    for address in own_addresses():
        try:
            left = max(ends - time.monotonic(), 0.001)
            connected = socket.create_connection((address, port), timeout=left)
        except TimeoutError:
            raise
        except OSError:
            continue  # nobody listens, or there is no such family here
        with connected:
            yield Timed(connected, ends)
        return
    yield None


def ask(sock: Any, host: str, method: str, path: str, body: bytes | None) -> Answer:
    """One HTTP request over a connection; no redirect is followed.

    Raises OSError, http.client.HTTPException; TimeoutError when the connection's time is over.
    """
    with _response(sock, host, method, path, body) as response:
        found = response.read(LARGEST + 1)
        if len(found) > LARGEST:
            raise OSError(f"answers more than {LARGEST} bytes")
        if response.length:  # http.client takes a short one for the whole
            raise http.client.IncompleteRead(found, response.length)
        return Answer(response.status, found)


def ask_status(sock: Any, path: str) -> int:
    """The status of a GET over a connection; the rest of the answer is not waited for.

    Raises as `ask` does.
    """
    with _response(sock, "localhost", "GET", path, None) as response:
        return response.status


def _response(
    sock: Any, host: str, method: str, path: str, body: bytes | None
) -> http.client.HTTPResponse:
    asking = http.client.HTTPConnection(host)
    asking.sock = sock
    headers = {"Connection": "close", "User-Agent": "thaw"}
    if body:
        headers["Content-Type"] = "application/json"
    asking.request(method, path, body, headers)
    return asking.getresponse()


def own_addresses() -> list[str]:
    """The addresses of this thread's network namespace, loopback first; none of links."""
    return [*LOOPBACK, *addresses(f"{os.getpid()}/task/{threading.get_native_id()}")]


class Timed:
    """A connected socket whose every operation ends at a moment of the monotonic clock.

    What http.client needs of a socket; a timeout of a socket's own begins anew with each byte.
    """

    def __init__(self, sock: socket.socket, ends: float) -> None:
        self._sock = sock
        self._ends = ends

    def sendall(self, data: bytes) -> None:
        """As a socket's."""
        self._limit()
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """A file to read from; `mode` is rb."""
        assert mode == "rb"
        return io.BufferedReader(_Reading(self))

    def receive_into(self, buffer: Any) -> int:
        """As a socket's recv_into."""
        self._limit()
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        """The socket is closed by whoever made it."""

    def _limit(self) -> None:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("its time is over")
        self._sock.settimeout(left)


class _Reading(io.RawIOBase):
    def __init__(self, timed: Timed) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._timed.receive_into(buffer)
