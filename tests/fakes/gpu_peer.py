"""A process with a GPU memory library, as far as the engine can tell: it speaks native/gpu/wire.h.

    gpu_peer.py UUIDS SIZE…     UUIDs of its GPUs in hex, with commas; bytes of each of its pieces

Its memory are files such as the fake libcuda's (tests/fakes/libcuda_vmm.c), so that the engine's
own side can be the real one. A line on stdin is a JSON object: "play" changes what it answers, all
others are answered by one line on stdout. Started by `Peer`.
"""

from __future__ import annotations

import array
import hashlib
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
from types import TracebackType
from typing import Any, Self

HELLO, HOLD, EXPORT, EMPTY, GIVE, OPEN = range(1, 7)
KINDS = ("", "HELLO", "HOLD", "EXPORT", "EMPTY", "GIVE", "OPEN")
RUNNING, HELD, EMPTIED = range(3)
OK, CUDA, BUSY, MISSING, WRONG = range(5)
_MARK = b"fake GPU memory\0"
_HEADER = struct.Struct("<IIIIQ64s")
_MEMORY = struct.Struct("<QQII")


class Peer:
    """Such a process, ended with the block."""

    def __init__(self, sizes: list[int], uuids: list[bytes], *, marker: bool = True) -> None:
        words = [",".join(uuid.hex() for uuid in uuids), *map(str, sizes)]
        command = [sys.executable, "-IS", __file__, *words]
        pipe = subprocess.PIPE
        env = {"PEER_WITHOUT_MARKER": "1"} if not marker else {}
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def play(self, **what: Any) -> None:
        """How it answers from now on: {"EMPTY": {"status": CUDA, "value": 2}} and so on.

        `status`, `value`, `text`, `state`; `silent`: not at all; `raw`: these bytes, in hex;
        `ends`: it exits instead; `keeps`: EMPTY leaves so many pieces; `first`: stale answers
        before its own; `done`: it does it, whatever it answers. "about": bytes of what HELLO says,
        and its `flags`.
        """
        self._ask(play=what)

    def write(self, piece: int, offset: int, data: bytes) -> None:
        """Into its memory, if it has it."""
        self._ask(write=[piece, offset, data.hex()])

    @property
    def digest(self) -> list[str]:
        """Of each piece; "" for one that it has not got."""
        found: list[str] = self._ask(digest=True)
        return found

    @property
    def rdma(self) -> list[bool]:
        """Of each piece that it has: whether network cards reach it, as they do its first."""
        found: list[bool] = self._ask(rdma=True)
        return found

    @property
    def state(self) -> int:
        found: int = self._ask(state=True)
        return found

    @property
    def asked(self) -> list[str]:
        """All that it was asked for, but HELLO."""
        found: list[str] = self._ask(asked=True)
        return found

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, **what: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class _Library:
    """The other side."""

    def __init__(self, uuids: list[bytes], sizes: list[int]) -> None:
        self.uuids = uuids
        self.sizes = sizes
        self.files: list[int | None] = [self._made(size) for size in sizes]
        self.state = RUNNING
        self.plays: dict[str, Any] = {}
        self.asked: list[str] = []
        self.theirs, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._page = self._marker()

    def _made(self, size: int) -> int:
        fd = os.memfd_create("fake-gpu")
        os.pwrite(fd, struct.pack("<16s16sQ", _MARK, self.uuids[0], size), size)
        return fd

    def _marker(self) -> mmap.mmap | None:
        if os.environ.get("PEER_WITHOUT_MARKER"):
            return None
        fd = os.memfd_create("thaw-gpu")
        os.ftruncate(fd, 4096)
        page = mmap.mmap(fd, 4096)
        os.close(fd)
        values = (0x3155504757414854, 1, os.getpid(), self.theirs.fileno(), 0)
        page[:24] = struct.pack("<QIIiI", *values)
        return page

    def serve(self) -> None:
        while True:
            space = socket.CMSG_SPACE(64 * 4)
            data, ancillary, _, _ = self.ours.recvmsg(8192, space)
            fds = array.array("i")
            for _, _, content in ancillary:
                fds.frombytes(content)
            kind, _, _, count, value, _ = _HEADER.unpack_from(data)
            records = list(_MEMORY.iter_unpack(data[_HEADER.size :]))[:count]
            self._answer(kind, value, records, fds.tolist())

    def _answer(self, kind: int, value: int, records: list[Any], fds: list[int]) -> None:
        if kind != HELLO:
            self.asked.append(KINDS[kind])
        play = self.plays.get(KINDS[kind], {})
        if play.get("ends"):
            os._exit(3)
        if play.get("silent"):
            return
        for stale in play.get("first", ()):
            self.ours.send(_HEADER.pack(stale, 0, self.state, 0, 0, b""))
        if "raw" in play:
            self.ours.send(bytes.fromhex(play["raw"]))
            return
        status = play.get("status", OK)
        body: tuple[int, bytes, list[int]] = (0, b"", [])
        if status == OK or play.get("done") or "keeps" in play:
            status, body = self._do(kind, value, records, fds)
            status = play.get("status", status)
        count, rest, sent = body
        text = str(play.get("text", "given already" if status == WRONG else "")).encode()
        state = play.get("state", self.state)
        head = _HEADER.pack(kind, status, state, count, play.get("value", 0), text)
        socket.send_fds(self.ours, [head + rest], sent)

    def _do(
        self, kind: int, value: int, records: list[Any], fds: list[int]
    ) -> tuple[int, tuple[int, bytes, list[int]]]:
        nothing: tuple[int, bytes, list[int]] = (0, b"", [])
        if kind == HELLO:
            return OK, (1, self._about(), [])
        if kind == HOLD:
            self.state = HELD
        elif kind == EXPORT:
            return OK, self._exported(value)
        elif kind == EMPTY:
            kept = self.plays.get("EMPTY", {}).get("keeps", 0)  # half done
            for fd in filter(None, self.files[kept:]):
                os.close(fd)
            self.files[kept:] = [None] * len(self.files[kept:])
            self.state = EMPTIED
        elif kind == GIVE:
            for (id, _, _, _), fd in zip(records, fds, strict=True):
                if self.files[id // 10 - 1] is not None:
                    return WRONG, nothing
                self.files[id // 10 - 1] = fd
        elif kind == OPEN:
            self.state = RUNNING
            return (MISSING if None in self.files else OK), nothing
        return OK, nothing

    def _exported(self, first: int) -> tuple[int, bytes, list[int]]:
        """Two at a time, so that there are several messages."""
        ids = [id for id in range(10, 10 * len(self.files) + 1, 10) if id >= first][:2]
        records = [_MEMORY.pack(id, self.sizes[id // 10 - 1], 0, id == 10) for id in ids]
        fds = [fd for id in ids if (fd := self.files[id // 10 - 1]) is not None]
        return len(ids), b"".join(records), fds

    def _about(self) -> bytes:
        play = self.plays.get("about", {})
        left = [play.get(name, 0) for name in ("small", "pool", "managed", "other", "exported")]
        movable = play.get("movable", sum(self.sizes))
        numbers = [movable, len(self.sizes), *left, play.get("imported", 0)]
        devices = b"".join(self.uuids).ljust(1024, b"\0")
        return struct.pack("<8QII", *numbers, len(self.uuids), play.get("flags", 0)) + devices

    def _digest(self, number: int) -> str:
        fd = self.files[number]
        if fd is None:
            return ""
        return hashlib.sha256(os.pread(fd, self.sizes[number], 0)).hexdigest()

    def told(self, line: dict[str, Any]) -> Any:
        if "play" in line:
            self.plays = line["play"]
        elif "write" in line:
            piece, offset, data = line["write"]
            os.pwrite(self.files[piece] or -1, bytes.fromhex(data), offset)
        elif "digest" in line:
            return [self._digest(number) for number in range(len(self.files))]
        elif "rdma" in line:
            names = [os.readlink(f"/proc/self/fd/{fd}") for fd in self.files if fd is not None]
            return ["rdma" in name for name in names]
        elif "state" in line:
            return self.state
        elif "asked" in line:
            return self.asked
        return None


def main(uuids: str, *sizes: str) -> None:
    library = _Library([bytes.fromhex(u) for u in uuids.split(",")], [int(s) for s in sizes])
    threading.Thread(target=library.serve, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(library.told(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
