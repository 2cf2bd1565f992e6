"""The conversation with the GPU memory library of one process: one request, one answer, in turn.

Its socket is taken out of the process by descriptor, so nobody else can be at its other end; but a
worker may have put anything there, and answer anything. So there is a limit to every wait, and what
comes is used only after it was found to be possible.

What was done is asked of the library and never remembered: `state` is what its last answer said. A
conversation that broke off, perhaps with an engine that was killed, has left its answers behind;
they are passed over.
"""

from __future__ import annotations

import array
import os
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple, Self

from shim._native import lib
from shim.errors import GpuFailed, GpuLost
from shim.gpu.memory import marker
from shim.gpu.memory.wire import (
    LARGEST,
    RECORDS,
    About,
    Answer,
    Kind,
    Memory,
    State,
    Status,
    request,
)
from shim.gpu.results import result
from shim.native import check

ANSWER = 30.0  # seconds for an answer that takes no longer than the driver's own calls do
_PASSED_OVER = 1000  # answers to nobody
_SLACK = 5.0  # seconds beyond those for which the library itself waits
_MOST = 1 << 16  # pieces of one process
_THERE = "given already"  # what it says of a piece that it has
_IMPORT = "cuMemImportFromShareableHandle"
_NO_ROOM = "CUDA_ERROR_OUT_OF_MEMORY"
_STRANGE = "is something wrong with the process, or with its driver?"
_BUSY = "quiesce the worker, or give it more time (gpu.lock)"


class NotTaken(GpuFailed):
    """The driver, in the process, does not take memory that others have made."""


class Piece(NamedTuple):
    """A piece of device memory of the process, and a descriptor of it, which is ours."""

    memory: Memory
    fd: int


class Library:
    """One process's library. Every call raises GpuFailed if it cannot be done."""

    def __init__(self, pid: int, end: socket.socket, seconds: float = ANSWER) -> None:
        self.pid = pid
        self.state = State.RUNNING
        self._end = end
        self._seconds = seconds

    @classmethod
    def of(cls, pid: int, seconds: float = ANSWER) -> Self | None:
        """The library of a process; None if it has none, or has ended. Raises GpuFailed."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        try:
            found = marker.find(pid)
            if found is None:
                return None
            fd = check(lib.thaw_pidfd_getfd(pidfd, found.engine))
        except ProcessLookupError:
            return None
        except OSError as error:
            raise _failed(pid, f"descriptor: {error.strerror}") from error
        finally:
            os.close(pidfd)
        end = _socket(fd)
        if end is None:
            os.close(fd)
            raise _failed(pid, "its descriptor is no socket of its kind")
        return cls(pid, end, seconds)

    def hello(self) -> About:
        """Begin; what it knows of itself. Answers that nobody has waited for are gone then."""
        self._drain()
        answer = self._ask(Kind.HELLO)
        with self._sensible():
            return About.parse(answer.records)

    def hold(self, seconds: float) -> None:
        """Let what is submitted come to its end within that time, and nothing new begin."""
        milliseconds = max(1, int(seconds * 1000))
        self._ask(Kind.HOLD, milliseconds, seconds=seconds + self._seconds + _SLACK)

    def export(self, most: int, devices: int) -> list[Piece]:
        """All that is to be moved, by id; the descriptors are the caller's to close.

        At most `most` bytes, on as many GPUs as there are.
        """
        found: list[Piece] = []
        try:
            while True:
                first = found[-1].memory.id + 1 if found else 0
                more = self._export(first, devices)
                found += more
                if not more:
                    return found
                total = sum(piece.memory.size for piece in found)
                if total > most or len(found) > _MOST:
                    raise _failed(self.pid, f"{len(found)} pieces, {total} bytes: too much")
        except BaseException:
            close_all(found)
            raise

    def empty(self) -> None:
        """Have it let go of all that it has exported; addresses stay reserved."""
        self._ask(Kind.EMPTY)

    def give(self, pieces: Sequence[Piece]) -> None:
        """Have it map these where they were. The descriptors stay ours. Raises NotTaken."""
        for at in range(0, len(pieces), RECORDS):
            some = pieces[at : at + RECORDS]
            records = [piece.memory for piece in some]
            self._ask(Kind.GIVE, 0, records, [piece.fd for piece in some])

    def give_missing(self, pieces: Sequence[Piece]) -> None:
        """The same, for one that has some of them: an EMPTY that failed may have left it so."""
        for piece in pieces:
            message = request(Kind.GIVE, 0, [piece.memory])
            answer, unwanted = self._exchange(Kind.GIVE, message, [piece.fd], self._seconds)
            _close(unwanted)
            if answer.status is not Status.WRONG or answer.text != _THERE:
                self._judge(answer)

    def make(self, memory: Memory) -> Piece | None:
        """Have it make a piece itself, where it was; the descriptor is the caller's to close.

        None if it has that piece. From then on it has nothing to be moved.
        """
        answer, fds = self._exchange(Kind.MAKE, request(Kind.MAKE, 0, [memory]), (), self._seconds)
        if answer.status is not Status.OK or len(fds) != 1:
            _close(fds)
            if answer.status is Status.WRONG and answer.text == _THERE:
                return None
            self._judge(answer)
            raise _failed(self.pid, f"{len(fds)} descriptors of one piece")
        self.state = answer.state
        return Piece(memory, fds[0])

    def open(self) -> None:
        """Let it go on."""
        self._ask(Kind.OPEN)

    def close(self) -> None:
        """Our copy of the descriptor; the library notices nothing."""
        self._end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _export(self, first: int, devices: int) -> list[Piece]:
        message = request(Kind.EXPORT, first)
        answer, fds = self._exchange(Kind.EXPORT, message, (), self._seconds)
        try:
            self._judge(answer)
            with self._sensible():
                memory = answer.memory()
                ids = [first - 1, *(piece.id for piece in memory)]
                if any(last >= id for last, id in pairwise(ids)):
                    raise ValueError("pieces out of order")
                if any(piece.device >= devices for piece in memory):
                    raise ValueError("a piece on a GPU that it does not have")
                if len(fds) != len(memory):
                    raise ValueError(f"{len(fds)} descriptors of {len(memory)} pieces")
        except BaseException:
            _close(fds)
            raise
        return [Piece(piece, fd) for piece, fd in zip(memory, fds, strict=True)]

    def _ask(
        self,
        kind: Kind,
        value: int = 0,
        records: Sequence[Memory] = (),
        fds: Sequence[int] = (),
        seconds: float | None = None,
    ) -> Answer:
        message = request(kind, value, list(records))
        answer, unwanted = self._exchange(kind, message, fds, seconds or self._seconds)
        _close(unwanted)
        self._judge(answer)
        return answer

    def _judge(self, answer: Answer) -> None:
        self.state = answer.state
        if answer.status is Status.OK:
            return
        what = Kind(answer.kind).name
        if answer.status is Status.CUDA:
            said = result(answer.value & 0xFFFF_FFFF, answer.text or what)
            where = answer.text or what
            failed = _failed(self.pid, f"{where}: {said.name}: {said.sentence}", said.hint)
            if where == _IMPORT and said.name != _NO_ROOM:
                raise NotTaken(failed.message, hint=failed.hint)
            raise failed
        if answer.status is Status.BUSY:
            raise _failed(self.pid, "its GPU work has not come to rest in time", _BUSY)
        words = answer.text or answer.status.name.lower()
        raise _failed(self.pid, f"{what}: {words}")

    def _exchange(
        self, kind: Kind, message: bytes, fds: Sequence[int], seconds: float
    ) -> tuple[Answer, list[int]]:
        """Ask, and wait for the answer to that."""
        end = time.monotonic() + seconds
        self._wait(select.POLLOUT, end, kind)
        with self._connected():
            socket.send_fds(self._end, [message], list(fds), socket.MSG_DONTWAIT)
        for _ in range(_PASSED_OVER):
            self._wait(select.POLLIN, end, kind)
            answer, found = self._receive()
            if answer.kind == kind:
                return answer, found
            _close(found)
        raise _failed(self.pid, "it answers what nobody has asked")

    def _receive(self) -> tuple[Answer, list[int]]:
        space = socket.CMSG_SPACE(RECORDS * 4)
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        with self._connected():
            data, ancillary, said, _ = self._end.recvmsg(LARGEST, space, flags)
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        try:
            if not data:
                raise _failed(self.pid, "it has ended")
            with self._sensible():
                if said & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise ValueError("an answer that is too long")
                return Answer.parse(data), fds.tolist()
        except BaseException:
            _close(fds.tolist())
            raise

    def _drain(self) -> None:
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        for _ in range(_PASSED_OVER):
            if not any(event & select.POLLIN for _, event in poll.poll(0)):
                return
            with suppress(GpuFailed):  # whatever it is, it is not for us
                _close(self._receive()[1])

    def _wait(self, what: int, end: float, kind: Kind) -> None:
        poll = select.poll()
        poll.register(self._end, what)
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise _failed(self.pid, f"it does not answer ({kind.name})")

    def _connected(self) -> _As:
        return _As(self.pid, OSError)

    def _sensible(self) -> _As:
        return _As(self.pid, ValueError)


class _As:
    """A block whose errors of one kind become GpuFailed."""

    def __init__(self, pid: int, kind: type[Exception]) -> None:
        self._pid = pid
        self._kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, self._kind):
            raise _failed(self._pid, str(error)) from error


def close_all(pieces: Sequence[Piece]) -> None:
    """Give the descriptors of pieces back."""
    _close([piece.fd for piece in pieces])


def let_go_on(found: Library) -> None:
    """Open one that is held; GpuLost if its memory is nobody's any more."""
    if found.state is State.EMPTIED:
        raise GpuLost(
            f"process {found.pid} has lost its GPU memory with the engine that had taken it",
            hint="it cannot go on",
        )
    if found.state is State.HELD:
        found.open()


def _failed(pid: int, what: str, hint: str = "") -> GpuFailed:
    return GpuFailed(f"process {pid}: the GPU memory library: {what}", hint=hint or _STRANGE)


def _socket(fd: int) -> socket.socket | None:
    """The descriptor as a socket, if it is one as the library makes it."""
    try:
        found = socket.socket(fileno=fd)
    except OSError:
        return None
    if found.family == socket.AF_UNIX and found.type == socket.SOCK_SEQPACKET:
        return found
    found.detach()
    return None


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
