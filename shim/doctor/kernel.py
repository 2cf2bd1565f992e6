"""What the kernel must be able to do. Each is tried, not concluded from a version.

A restore, with or without CRIU, needs all of them; a container that this runs in may forbid some.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

from shim.doctor.node import Node
from shim.doctor.verdict import Verdict, bad, ok
from shim.snapshot.kernel import PROBES

_CLONE3 = 435  # on every architecture; asm-generic/unistd.h
# PTRACE_SEIZE, …_INTERRUPT, …_GET_RSEQ_CONFIGURATION and its structure; linux/ptrace.h
_SEIZE, _INTERRUPT, _RSEQ, _RSEQ_SIZE = 0x4206, 0x4207, 0x420F, 24
_TCP_REPAIR = 19
_NETFILTER = 12  # NETLINK_NETFILTER
_NEW_GENERATION, _GET_GENERATION = 10 << 8 | 15, 10 << 8 | 16  # NFT_MSG_…, of NFNL_SUBSYS_NFTABLES
_MOST_PID_LEVELS = 32

_libc = ctypes.CDLL(None, use_errno=True)


class Feature(NamedTuple):
    """Something that a kernel can do: `probe` raises OSError if this one cannot."""

    name: str
    since: str  # the first kernel that has it
    probe: Callable[[], None]


def told(name: str) -> Callable[[], None]:
    """The probe for what workers depend on, too, and snapshots therefore note."""

    def probe() -> None:
        if not PROBES[name]():
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    return probe


def vm_write() -> None:
    """Writing into another process's memory (process_vm_writev)."""
    source, target = ctypes.create_string_buffer(b"thaw", 4), ctypes.create_string_buffer(4)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(source), 4)
    there = (ctypes.c_size_t * 2)(ctypes.addressof(target), 4)
    _libc.process_vm_writev.restype = ctypes.c_ssize_t
    _checked(_libc.process_vm_writev(os.getpid(), here, 1, there, 1, 0))


def ptrace() -> None:
    """Seizing a process, and reading where its area for restartable sequences is."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        _libc.ptrace.restype = ctypes.c_long
        _libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        _checked(_libc.ptrace(_SEIZE, child.pid, None, None))
        _checked(_libc.ptrace(_INTERRUPT, child.pid, None, None))
        os.waitpid(child.pid, 0)  # of one that is not stopped nothing is told
        area = ctypes.create_string_buffer(_RSEQ_SIZE)
        _checked(_libc.ptrace(_RSEQ, child.pid, _RSEQ_SIZE, ctypes.addressof(area)))
    finally:
        child.kill()
        child.communicate()


def set_tid() -> None:
    """Choosing the pid of a new process (clone3 with set_tid, which CRIU needs in namespaces).

    One level more than there can be is refused as such; by a kernel that does not know the field,
    as too large a structure.
    """
    arguments = struct.pack("<10Q", *([0] * 4), 17, *([0] * 3), 1, _MOST_PID_LEVELS + 1)
    if _libc.syscall(_CLONE3, arguments, ctypes.c_size_t(len(arguments))) != -1:
        raise OSError(errno.EPROTO, "clone3 took what cannot be")
    if ctypes.get_errno() != errno.EINVAL:
        _checked(-1)


def tcp_repair() -> None:
    """Taking a TCP connection apart and putting it together again."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)


def nftables() -> None:
    """Packet filters, with which CRIU locks a worker's connections: asks for their generation."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as asked:
        asked.settimeout(5)
        asked.bind((0, 0))
        asked.send(struct.pack("=IHHIIBBH", 20, _GET_GENERATION, 1, 1, 0, 0, 0, 0))
        answer = asked.recv(4096)
    kind, status = struct.unpack_from("=IHHIIi", answer)[1::4]
    if kind != _NEW_GENERATION:
        raise OSError(-status, os.strerror(-status))


FEATURES = (
    Feature("ptrace", "5.13", ptrace),
    Feature("seccomp", "3.17", told("seccomp")),
    Feature("rseq", "4.18", told("rseq")),
    Feature("pidfd", "5.3", told("pidfd")),
    Feature("memfd", "3.17", told("memfd")),
    Feature("process_vm_writev", "3.2", vm_write),
    Feature("clone3 set_tid", "5.5", set_tid),
    Feature("TCP repair", "3.5", tcp_repair),
    Feature("nftables", "3.13", nftables),
)


def features(node: Node, known: tuple[Feature, ...] = FEATURES) -> Iterator[Verdict]:
    """One line for all that the kernel can do, and one for each thing that it cannot."""
    lacking = 0
    for feature in known:
        try:
            feature.probe()
        except OSError as error:
            lacking += 1
            yield bad(
                f"{feature.name} does not work: {error.strerror or error}",
                f"it is in kernels from {feature.since} on; may this process use it (root, not "
                "in a container)?",
            )
    if not lacking:
        release = node.read("/proc/sys/kernel/osrelease")
        yield ok(f"{release}: {', '.join(feature.name for feature in known)}")


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
