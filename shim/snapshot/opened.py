"""What the processes of a snapshot have open: files, pipes, sockets, by number.

Paths and names are text here; bytes that are none are kept as Python keeps them (surrogates).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shim.proto import criu_pb as pb
from shim.proto.wire import Message
from shim.snapshot import images as criu

FDINFO = 0x56213732
_M = TypeVar("_M", bound=Message)

_KINDS = {
    pb.FD_REGULAR: "file",
    pb.FD_PIPE: "pipe",
    pb.FD_FIFO: "fifo",
    pb.FD_INET: "inet",
    pb.FD_UNIX: "unix",
    pb.FD_EVENTFD: "eventfd",
    pb.FD_EPOLL: "epoll",
    pb.FD_INOTIFY: "inotify",
    pb.FD_SIGNALFD: "signalfd",
    pb.FD_PACKET: "packet",
    pb.FD_TTY: "tty",
    pb.FD_FANOTIFY: "fanotify",
    pb.FD_NETLINK: "netlink",
    pb.FD_NAMESPACE: "namespace",
    pb.FD_TUN: "tun",
    pb.FD_EXTERNAL: "external",
    pb.FD_TIMERFD: "timerfd",
    pb.FD_MEMFD: "memfd",
    pb.FD_BPF_MAP: "bpf map",
    pb.FD_PIDFD: "pidfd",
}
_TYPES = {1: "stream", 2: "dgram", 3: "raw", 5: "seqpacket"}
# TCP's; other sockets are open (as 7 is for UDP) or connected (1).
_STATES = {
    1: "established",
    2: "syn-sent",
    3: "syn-recv",
    4: "fin-wait-1",
    5: "fin-wait-2",
    6: "time-wait",
    7: "closed",
    8: "close-wait",
    9: "last-ack",
    10: "listening",
    11: "closing",
}


@dataclass(frozen=True)
class OpenFile:
    """A number of a process, and what it stands for."""

    fd: int
    kind: str  # a word of _KINDS
    name: str  # a path, or what else tells it from others; may be empty
    id: int  # the same for all numbers that stand for one open file


@dataclass(frozen=True)
class Socket:
    """An inet or unix socket. Addresses are ADDRESS:PORT, [ADDRESS]:PORT or a path."""

    id: int
    family: str  # "inet", "inet6" or "unix"
    type: str
    state: str
    local: str
    remote: str  # unix: the other end's path, or where it is not named the number of its file
    pids: list[int]


def decoded(kind: type[_M], images: Path, name: str, magic: int) -> list[_M]:
    """All messages of an image; none if there is no such file. Raises NotIndexable, WireError."""
    if not os.path.lexists(images / name):
        return []
    records = criu.records(criu.read(images, name, magic), 8, name)
    return [kind.decode(record) for record in records]


class Files:
    """files.img, and the tables of numbers of the processes."""

    def __init__(self, images: Path) -> None:
        self._images = images
        self._files = {f.id: f for f in decoded(pb.File, images, "files.img", criu.FILES)}
        inodes = decoded(pb.MemfdInode, images, "memfd.img", criu.MEMFD)
        self._memfds = {inode.inode_id: os.fsdecode(inode.name) for inode in inodes}
        unix = (f.usk for f in self._files.values() if f.usk is not None)
        self._unix = {socket.ino: socket for socket in unix}
        self._tables: dict[int, list[OpenFile]] = {}
        self._users: defaultdict[int, list[int]] = defaultdict(list)

    def of(self, pid: int, table: int) -> list[OpenFile]:
        """What is open in a process whose ids name this table, by number."""
        if table not in self._tables:
            found = decoded(pb.Descriptor, self._images, f"fdinfo-{table}.img", FDINFO)
            opened = (OpenFile(d.fd, _kind(d.type), self.name(d.id), d.id) for d in found)
            self._tables[table] = sorted(opened, key=lambda file: file.fd)
        for id in dict.fromkeys(file.id for file in self._tables[table]):
            self._users[id].append(pid)
        return self._tables[table]

    def name(self, id: int) -> str:
        """What a file is called: a path if it has one."""
        file = self._files.get(id)
        if file is None:
            return ""
        for part, describe in _NAMES:
            found = getattr(file, part)
            if found is not None:
                return describe(found)
        if file.memfd is not None:
            return self._memfds.get(file.memfd.inode_id, "")
        if file.isk is not None:
            return _inet(file.isk, []).local
        if file.usk is not None:
            return _path(file.usk.name)
        via = file.fifo or file.tty
        linked = self._files.get(via.regf_id) if via is not None else None
        return os.fsdecode(linked.reg.name) if linked is not None and linked.reg else ""

    def sockets(self) -> list[Socket]:
        """The inet and unix sockets that a process has open, by id; `of` comes before."""
        found = []
        for id, pids in sorted(self._users.items()):
            file = self._files.get(id)
            if file is not None and file.isk is not None:
                found.append(_inet(file.isk, pids))
            elif file is not None and file.usk is not None:
                found.append(self._unix_socket(file.usk, pids))
        return found

    def _unix_socket(self, found: pb.UnixSocket, pids: list[int]) -> Socket:
        peer = self._unix.get(found.peer)
        remote = _path(peer.name) if peer is not None else ""
        if found.peer and not remote:
            remote = f"file {peer.id}" if peer is not None else "outside"
        return Socket(
            found.id,
            "unix",
            _type(found.type),
            _state(found.state),
            _path(found.name),
            remote,
            pids,
        )


def _kind(number: int) -> str:
    return _KINDS.get(number, f"type {number}")


def _type(number: int) -> str:
    return _TYPES.get(number, f"type {number}")


def _state(number: int) -> str:
    return _STATES.get(number, f"state {number}")


def _inet(found: pb.InetSocket, pids: list[int]) -> Socket:
    six = found.family == socket.AF_INET6
    kind = _type(found.type)
    state = _state(found.state)
    if kind != "stream":
        state = "connected" if found.state == 1 else "open"
    return Socket(
        found.id,
        "inet6" if six else "inet",
        kind,
        state,
        _address(found.src_addr, found.src_port),
        _address(found.dst_addr, found.dst_port) if found.dst_port else "",
        pids,
    )


def _address(words: Iterable[int], port: int) -> str:
    """The lowest byte of each word is the first one of the address."""
    raw = b"".join(struct.pack("<I", word) for word in words)
    if len(raw) == 4:
        return f"{ipaddress.IPv4Address(raw)}:{port}"
    if len(raw) == 16:
        return f"[{ipaddress.IPv6Address(raw)}]:{port}"
    return f"?:{port}"


def _path(name: bytes) -> str:
    """A unix socket's name as ss(8) shows it: an abstract one begins with @."""
    if name.startswith(b"\0"):
        return "@" + os.fsdecode(name[1:].rstrip(b"\0"))
    return os.fsdecode(name.rstrip(b"\0"))


# What a file's own part says of it.
_NAMES: tuple[tuple[str, Callable[..., str]], ...] = (
    ("reg", lambda part: os.fsdecode(part.name)),
    ("pipe", lambda part: f"pipe {part.pipe_id} ({'write' if part.flags & 1 else 'read'})"),
    ("efd", lambda part: f"count {part.counter}"),
    ("epfd", lambda part: f"{len(part.targets)} watched"),
    ("ify", lambda part: f"{len(part.watches)} watches"),
    ("tunf", lambda part: os.fsdecode(part.netdev)),
    ("nlsk", lambda part: f"protocol {part.protocol}"),
    ("bpf", lambda part: os.fsdecode(part.map_name)),
    ("pidfd", lambda part: f"pid {part.nspid}"),
)
