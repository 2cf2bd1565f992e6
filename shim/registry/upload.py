"""How one blob gets to a registry: in one stream, gone on with where the registry says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from shim.errors import Damaged
from shim.registry.attempts import Attempts
from shim.registry.progress import Halt, Progress
from shim.registry.repository import Repository
from shim.registry.transport import Interrupted

_BLOCK = 1 << 18  # bytes that are sent at once


class Upload:
    """One blob of `size` bytes, in the file `path`, on its way to a repository."""

    def __init__(
        self,
        repository: Repository,
        path: Path,
        digest: str,
        size: int,
        halt: Halt,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._path = path
        self._digest = digest
        self._size = size
        self._halt = halt
        self._progress = progress
        self._attempts = Attempts(f"blob {digest}", halt, progress)
        self._session = ""
        self._confirmed = 0  # bytes that the registry has said are there
        self._told = 0  # bytes that were counted as sent

    def run(self) -> None:
        """Send it, unless it is there. Raises Damaged, RegistryFailed, Cancelled."""
        fd = self._open()
        try:
            while True:
                try:
                    self._halt.check()
                    if not self._repository.has_blob(self._digest):
                        self._send(fd)
                    self._tell(self._size)
                    return
                except Interrupted as error:
                    self._attempts.failed(error)
        finally:
            os.close(fd)

    def _open(self) -> int:
        fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size != self._size:
            os.close(fd)
            raise Damaged(
                f"{self._path} has not the {self._size} bytes that its manifest says",
                hint="see `thaw verify`",
            )
        return fd

    def _send(self, fd: int) -> None:
        first = 0
        if self._session:
            first, self._session = self._repository.uploaded(self._session)
        if not self._session or not 0 < first <= self._size:
            self._session, first = self._repository.begin_upload(), 0
        if first > self._confirmed:
            self._attempts.progressed(0, first - self._confirmed)
            self._confirmed = first
        self._tell(first)
        rest = self._size - first
        if first and rest:  # a part of a blob comes by a request of its own
            body = self._blocks(fd, first)
            self._session = self._repository.continue_upload(self._session, body, first, rest)
            first, rest = self._size, 0
        left = self._blocks(fd, first) if rest else b""
        self._repository.finish_upload(self._session, self._digest, left, rest)

    def _blocks(self, fd: int, position: int) -> Iterator[bytes]:
        while block := os.pread(fd, _BLOCK, position):
            position += len(block)
            yield block
            self._attempts.progressed(len(block), 0)  # new is what the registry confirms
            self._tell(position)

    def _tell(self, position: int) -> None:
        self._progress.advance(position - self._told)
        self._told = position
