"""Open files and sockets, by what they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes import looked
from fakes.images import Images

from shim.proto import criu_pb as pb
from shim.snapshot import images as criu
from shim.snapshot.images import NotIndexable
from shim.snapshot.opened import FDINFO, Files, OpenFile, decoded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return looked.images(tmp_path_factory.mktemp("criu"))


def test_files_of_a_process(folder: Path) -> None:
    assert Files(folder).of(1, 2) == [
        OpenFile(0, "file", os.fsdecode(b"/srv/log\xff"), 2),
        OpenFile(1, "pipe", "pipe 77 (write)", 3),
        OpenFile(2, "inet", "10.0.0.7:8080", 4),
        OpenFile(3, "inet", "[::1]:9", 5),
        OpenFile(4, "unix", "@x", 6),
        OpenFile(5, "unix", "", 7),
        OpenFile(6, "memfd", "weights", 8),
        OpenFile(7, "eventfd", "count 5", 9),
    ]


def test_sockets(folder: Path) -> None:
    files = Files(folder)
    assert files.sockets() == [], "those that somebody has"
    files.of(1, 2)
    files.of(7, 3)
    listening, connected, named, other = files.sockets()
    assert (listening.family, listening.type, listening.state) == ("inet", "stream", "listening")
    assert (listening.local, listening.remote, listening.pids) == ("10.0.0.7:8080", "", [1, 7])
    assert (connected.family, connected.local, connected.remote) == (
        "inet6",
        "[::1]:9",
        "[::1]:443",
    )
    assert (named.family, named.local, named.remote) == ("unix", "@x", "file 7")
    assert (other.local, other.remote, other.pids) == ("", "@x", [1])


@pytest.mark.parametrize(
    ("file", "kind", "name"),
    [
        (pb.File(type=pb.FD_EPOLL, id=1, epfd=pb.EpollFile(targets=[pb.EpollTarget()])), "epoll",
         "1 watched"),
        (pb.File(type=pb.FD_INOTIFY, id=1, ify=pb.InotifyFile()), "inotify", "0 watches"),
        (pb.File(type=pb.FD_TUN, id=1, tunf=pb.TunFile(netdev=b"tap0")), "tun", "tap0"),
        (pb.File(type=pb.FD_FIFO, id=1, fifo=pb.FifoFile(regf_id=2)), "fifo", "/run/fifo"),
        (pb.File(type=pb.FD_TTY, id=1, tty=pb.TtyFile(regf_id=2)), "tty", "/run/fifo"),
        (pb.File(type=pb.FD_TTY, id=1, tty=pb.TtyFile(regf_id=1)), "tty", ""),
        (pb.File(type=pb.FD_MEMFD, id=1, memfd=pb.MemfdFile(inode_id=9)), "memfd", ""),
        (pb.File(type=pb.FD_TIMERFD, id=1, tfd=pb.TimerFile()), "timerfd", ""),
        (pb.File(type=99, id=1), "type 99", ""),
        (pb.File(type=pb.FD_PIDFD, id=3), "pidfd", ""),
    ],
)  # fmt: skip
def test_kinds(tmp_path: Path, file: pb.File, kind: str, name: str) -> None:
    images = Images(tmp_path)
    path = pb.File(type=pb.FD_REGULAR, id=2, reg=pb.RegularFile(name=b"/run/fifo"))
    images.put("files.img", criu.FILES, file, path)
    images.put("fdinfo-4.img", FDINFO, pb.Descriptor(id=1, type=file.type, fd=8))
    assert Files(tmp_path).of(1, 4) == [OpenFile(8, kind, name, 1)]


@pytest.mark.parametrize(
    ("socket", "words"),
    [
        (pb.InetSocket(family=2, type=2, state=7, src_addr=[0], src_port=53),
         ("inet", "dgram", "open", "0.0.0.0:53", "")),
        (pb.InetSocket(family=2, type=2, state=1, src_addr=[0], dst_addr=[1], dst_port=1),
         ("inet", "dgram", "connected", "0.0.0.0:0", "1.0.0.0:1")),
        (pb.InetSocket(family=7, type=9, state=99, src_addr=[1, 2], src_port=1),
         ("inet", "type 9", "open", "?:1", "")),
        (pb.InetSocket(family=2, type=1, state=99, src_addr=[]),
         ("inet", "stream", "state 99", "?:0", "")),
    ],
)  # fmt: skip
def test_odd_sockets(tmp_path: Path, socket: pb.InetSocket, words: tuple[str, ...]) -> None:
    images = Images(tmp_path)
    socket.id = 1
    images.put("files.img", criu.FILES, pb.File(type=pb.FD_INET, id=1, isk=socket))
    images.put("fdinfo-4.img", FDINFO, pb.Descriptor(id=1, type=pb.FD_INET, fd=8))
    files = Files(tmp_path)
    files.of(1, 4)
    (found,) = files.sockets()
    assert (found.family, found.type, found.state, found.local, found.remote) == words


def test_a_peer_outside(tmp_path: Path) -> None:
    images = Images(tmp_path)
    usk = pb.UnixSocket(id=1, type=5, state=1, peer=12, name=b"/run/x\0")
    images.put("files.img", criu.FILES, pb.File(type=pb.FD_UNIX, id=1, usk=usk))
    images.put("fdinfo-4.img", FDINFO, pb.Descriptor(id=1, type=pb.FD_UNIX, fd=8))
    files = Files(tmp_path)
    files.of(1, 4)
    (found,) = files.sockets()
    assert (found.type, found.local, found.remote) == ("seqpacket", "/run/x", "outside")


def test_nothing_and_garbage(tmp_path: Path) -> None:
    assert Files(tmp_path).of(1, 4) == []
    assert decoded(pb.File, tmp_path, "files.img", criu.FILES) == []
    (tmp_path / "files.img").write_bytes(b"x" * 20)
    with pytest.raises(NotIndexable, match="magic"):
        Files(tmp_path)
