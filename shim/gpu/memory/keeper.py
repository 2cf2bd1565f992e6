"""Somebody else who has hold of GPU memory while it is out of a worker's hands: native/keeper.c.

An engine that is killed then would take the memory of the worker along. So a small process is told
of all of it before the worker lets go, descriptors included; it is ended once everything has been
given back, and if nobody does that because the engine is no more, it waits in the container's
folder for the next one:

    with Keeper(folder, needed) as keeper:
        keeper.keep(pieces)         it has them
        …                           whatever becomes of us, up to a SIGKILL
        keeper.done()               the worker has its memory again

    recover(folder, pids)           in another engine

A process of its own and not the daemon: that one has to stay small, and neither GPU memory nor its
descriptors are any of its business. It is in a process group of its own, as an engine that ends
takes its own along.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from shim.errors import GpuFailed, GpuLost
from shim.gpu.memory.library import Library, Piece, close_all, let_go_on
from shim.gpu.memory.wire import RECORDS, Memory, State
from shim.gpu.processes import all_of, each
from shim.gpu.watch import Watch
from shim.native import KEEPER
from shim.spawn import spawn

# Seconds that it waits once the engine is dead. CRIU first comes to its own end, and the driver may
# take gpu.limit twice; who needs it no longer ends it, as does the end of the container.
LIMIT = 1800.0
_SOCKET = "keeper.sock"
_ANSWER = 30.0  # seconds: it has nothing to do but this
_ENDING = 10.0  # seconds for a process that is being killed to end
_EXIT = 10.0  # seconds for the keeper to do so when it is told
_LONGEST = 8192  # bytes of a message; as in native/keeper.c, and so are its kinds
_KEEP, _COUNT, _DONE = b"k", b"?", b"d"
_HINT = "the container runs on; was the process killed for memory, is Thaw installed whole?"
_CANNOT = "the worker is lost, its GPU memory cannot be given back"


class Keeper:
    """Such a process, from the beginning of the block to `done`, or the block's end.

    `folder` is the container's. The keeper ends with whichever of the processes `needed` is the
    first to end, and `seconds` after this one. Raises GpuFailed if it cannot be started.
    """

    def __init__(self, folder: Path, needed: Iterable[int], *, seconds: float = LIMIT) -> None:
        self.pid = 0
        self._folder = folder
        self._needed = list(needed)
        self._seconds = seconds
        self._end: socket.socket | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except OSError as error:
            self.done()
            raise _failed(f"cannot be started: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.done()

    def keep(self, pieces: Mapping[int, Sequence[Piece]]) -> None:
        """Have it keep these, by process, and return when it has them. Raises GpuFailed."""
        assert self._end is not None
        total = 0
        try:
            for pid, of_one in pieces.items():
                for at in range(0, len(of_one), RECORDS):
                    some = of_one[at : at + RECORDS]
                    words = json.dumps([pid, [list(piece.memory) for piece in some]])
                    fds = [piece.fd for piece in some]
                    socket.send_fds(self._end, [_KEEP + words.encode()], fds)
                    total += len(some)
            self._end.sendall(_COUNT)
            answer = self._end.recv(_LONGEST)
        except OSError as error:
            raise _failed(f"does not take it: {error}") from error
        if answer != _COUNT + b"%d" % total:
            raise _failed(f"has not got all {total} pieces of it")

    def done(self) -> None:
        """Nobody needs it any more: it ends. Again is fine."""
        end, self._end = self._end, None
        if end is None:
            return
        with end, suppress(OSError):  # it may have ended by itself
            end.sendall(_DONE)
        (self._folder / _SOCKET).unlink(missing_ok=True)
        if self.pid:
            _reap(self.pid)

    def _start(self) -> None:
        with ExitStack() as theirs:
            listener = theirs.enter_context(_socket())
            (self._folder / _SOCKET).unlink(missing_ok=True)
            with _address(self._folder) as address:
                listener.bind(address)
            (self._folder / _SOCKET).chmod(0o600)
            listener.listen()  # from here on whoever comes waits, and is not refused
            self._end, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._end.settimeout(_ANSWER)
            fds = [theirs.enter_context(other).fileno(), listener.fileno()]
            for pid in self._needed:
                fds.append(os.pidfd_open(pid))
                theirs.callback(os.close, fds[-1])
            command = [KEEPER, str(round(self._seconds * 1000)), str(len(self._needed))]
            self.pid = spawn(command, {}, dict(enumerate(fds, 3)), group=True, alone=True)


def recover(folder: Path, pids: Iterable[int]) -> None:
    """Let processes go on that an engine which died has left held, or without their memory.

    Those that have ended are passed over. Raises GpuFailed, and GpuLost if the memory of one is
    nobody's any more.
    """
    with ExitStack() as stack:
        found = {pid: stack.enter_context(one) for pid in pids if (one := Library.of(pid))}
        kept = stack.enter_context(_Kept(folder))
        watch = stack.enter_context(Watch(found))
        # All get what is theirs before the first goes on, as always: see suspend.py.
        failures = each(lambda pid: _give(found[pid], kept.pieces.get(pid, [])), list(found))
        failures |= each(lambda pid: _open(found[pid]), [p for p in found if p not in failures])
        # One that has just said that its memory is nobody's is not being killed.
        ending = [p for p in failures if found[p].state is not State.EMPTIED or p in kept.pieces]
        watch.wait(ending, _ENDING)
        failures = {p: error for p, error in failures.items() if p not in watch.ended()}
        error = all_of(failures) if failures else None
        if error is None or isinstance(error, GpuLost):
            kept.done()
        if error is not None:
            raise error


def _give(library: Library, pieces: Sequence[Piece]) -> None:
    library.hello()
    if library.state is not State.EMPTIED:
        return
    if not pieces:
        let_go_on(library)
    try:
        library.give(pieces)
    except GpuFailed:  # the engine may have begun to give it back itself
        with _losing():
            library.give_missing(pieces)


def _open(library: Library) -> None:
    if library.state is State.EMPTIED:
        with _losing():
            library.open()
    else:
        let_go_on(library)


class _Kept:
    """What a keeper hands over: `pieces` by process, nothing if there is none."""

    def __init__(self, folder: Path) -> None:
        self.pieces: dict[int, list[Piece]] = {}
        self._folder = folder
        self._end = _socket()

    def __enter__(self) -> Self:
        try:
            with suppress(OSError), _address(self._folder) as address:
                self._end.connect(address)
                self._receive()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        for pieces in self.pieces.values():
            close_all(pieces)

    def done(self) -> None:
        """It is needed no more."""
        with suppress(OSError):
            self._end.sendall(_DONE)
        (self._folder / _SOCKET).unlink(missing_ok=True)

    def _receive(self) -> None:
        """What has come is used, be it all or not: the library knows what is missing."""
        while True:
            data, fds, _, _ = socket.recv_fds(self._end, _LONGEST, RECORDS)
            for fd in fds:
                os.set_inheritable(fd, False)
            if data[:1] != _KEEP:
                return
            pid, rows = json.loads(data[1:])
            some = [Piece(Memory(*row), fd) for row, fd in zip(rows, fds, strict=True)]
            self.pieces[pid] = self.pieces.get(pid, []) + some


@contextmanager
def _losing() -> Iterator[None]:
    """A block that must not fail: nothing else could be done for the process then."""
    try:
        yield
    except GpuFailed as error:
        raise GpuLost(f"{_CANNOT}: {error.message}", hint=error.hint) from error


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """Of the socket: by a descriptor of the folder, whose path may be too long for a socket."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{_SOCKET}"
    finally:
        os.close(fd)


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.settimeout(_ANSWER)
    return made


def _reap(pid: int) -> None:
    """Wait for a child of ours that is about to end; should it not, it is killed."""
    with suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(_EXIT * 1000):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                poll.poll(_EXIT * 1000)
        finally:
            os.close(pidfd)
        os.waitpid(pid, os.WNOHANG)


def _failed(what: str) -> GpuFailed:
    return GpuFailed(f"the process that keeps GPU memory {what}", hint=_HINT)
