"""The engine's side of the conversation with the GPU memory library, with no judgement of its own.

    with Conversation(program.pid) as library:
        assert library.ask(Kind.HOLD, 5000).status is Status.OK

What the engine itself uses is shim/gpu/memory/library.py; this one says whatever a test wants said.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

from shim._native import lib
from shim.gpu.memory import marker
from shim.gpu.memory.wire import LARGEST, RECORDS, About, Answer, Kind, Memory, State, request
from shim.native import LIBEXEC, check

LIBRARY = os.path.join(LIBEXEC, "libthaw-gpu.so")
SECONDS = 30.0


class Said(NamedTuple):
    """An answer and the descriptors that came with it."""

    answer: Answer
    fds: list[int]


class Conversation:
    """With the library of a process; what it gave is closed with the block."""

    def __init__(self, pid: int) -> None:
        found = marker.find(pid)
        assert found is not None, "no marker"
        pidfd = os.pidfd_open(pid)
        try:
            self._end = socket.socket(fileno=check(lib.thaw_pidfd_getfd(pidfd, found.engine)))
        finally:
            os.close(pidfd)
        self._end.settimeout(SECONDS)
        self._fds: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.close()
        for fd in self._fds:
            with suppress(OSError):
                os.close(fd)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Anything at all."""
        socket.send_fds(self._end, [data], list(fds))

    def receive(self) -> Said:
        """The next answer."""
        size = socket.CMSG_SPACE(RECORDS * 4)
        data, ancillary, flags, _ = self._end.recvmsg(LARGEST, size, socket.MSG_CMSG_CLOEXEC)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        self._fds += fds
        return Said(Answer.parse(data), fds.tolist())

    def exchange(
        self,
        kind: int,
        value: int = 0,
        records: Sequence[Memory] = (),
        fds: Sequence[int] = (),
    ) -> Said:
        """Ask, and what is answered."""
        self.send(request(Kind(kind), value, list(records)), fds)
        said = self.receive()
        assert said.answer.kind == kind
        return said

    def ask(
        self,
        kind: int,
        value: int = 0,
        records: Sequence[Memory] = (),
        fds: Sequence[int] = (),
    ) -> Answer:
        """The same where no descriptors come."""
        said = self.exchange(kind, value, records, fds)
        assert not said.fds
        return said.answer

    def about(self) -> About:
        """What HELLO answers."""
        return About.parse(self.ask(Kind.HELLO).records)

    def hold(self, milliseconds: int = 30_000) -> Answer:
        return self.ask(Kind.HOLD, milliseconds)

    def export(self) -> tuple[list[Memory], list[int]]:
        """All that there is, and a descriptor of each."""
        memory: list[Memory] = []
        fds: list[int] = []
        while True:
            said = self.exchange(Kind.EXPORT, memory[-1].id + 1 if memory else 0)
            assert not said.answer.status, said.answer
            if not said.fds:
                return memory, fds
            memory += said.answer.memory()
            fds += said.fds

    def give(self, memory: Sequence[Memory], fds: Sequence[int]) -> Answer:
        """As many messages as it takes; the last answer, or the first that is no success."""
        answer = self.ask(Kind.GIVE, 0, memory[:RECORDS], fds[:RECORDS])
        for at in range(RECORDS, len(memory), RECORDS):
            if not answer.status:
                some = slice(at, at + RECORDS)
                answer = self.ask(Kind.GIVE, 0, memory[some], fds[some])
        return answer

    def emptied(self) -> tuple[list[Memory], list[int]]:
        """Hold it and take all memory out; what that was."""
        assert not self.hold().status
        memory, fds = self.export()
        answer = self.ask(Kind.EMPTY)
        assert not answer.status
        assert answer.state is State.EMPTIED
        return memory, fds

    def moved(self) -> list[Memory]:
        """Take all memory out and give it back; what that was."""
        memory, fds = self.emptied()
        assert not self.give(memory, fds).status
        answer = self.ask(Kind.OPEN)
        assert not answer.status
        assert answer.state is State.RUNNING
        return memory
