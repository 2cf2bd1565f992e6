"""CRIU's images, as far as Thaw reads them: processes, mappings and shared memory.

An image is a file of records, each a 32-bit length and a protobuf message, after one or two magic
numbers that say what it is (CRIU's criu/magic.h and criu/image.c). Whatever the bytes are, reading
them returns what CRIU 4.2 would understand or raises NotIndexable with the reason.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from shim._native import ffi, lib
from shim.lean.values import Value
from shim.proto import criu_pb as pb
from shim.proto.wire import Message, WireError
from shim.snapshot.tree import open_file

PAGE = 4096
TOP = 1 << 63  # no address, offset or size reaches it

_COMMON = 0x54564319  # begins every image but the inventory
INVENTORY = 0x58313116
PSTREE = 0x50273030
CORE = 0x55053847
MM = 0x57492820
FILES = 0x56303138
MEMFD = 0x48453499
PAGEMAP = 0x56084025
_VERSION = 2  # the one with a common magic in the head of each image; CRIU writes no other
_VMA = struct.Struct("=QQQQIIII")  # struct thaw_vma
_LARGEST = 1 << 28  # bytes; a pagemap of 10 TiB has about as many

# Status of a mapping (criu/include/image.h).
_REGULAR, _HEAP, _MEMFD = 1 << 0, 1 << 5, 1 << 14
FILE_PRIVATE, FILE_SHARED, ANON_SHARED, ANON_PRIVATE = 1 << 6, 1 << 7, 1 << 8, 1 << 9
SYSVIPC, GUARD = 1 << 10, 1 << 16
_KINDS = FILE_PRIVATE | FILE_SHARED | ANON_SHARED | ANON_PRIVATE

_SHARED, _PRIVATE, _ANONYMOUS, _GROWSDOWN = 0x1, 0x2, 0x20, 0x100
_HUGETLB, _NORESERVE = 0x40000, 0x4000
_READ, _WRITE = 1, 2
# Seals under which nobody may write; those that are not listed in fcntl.h yet count as such.
_WRITE_SEALS = 0x8 | 0x10 | ~0x3F

_M = TypeVar("_M", bound=Message)
_NUMBERED = re.compile(r"pagemap-(shmem-)?(0|[1-9][0-9]{0,19})\.img")


class NotIndexable(Exception):
    """Why images cannot have an index: CRIU has to restore all of them."""


class Process(Value):
    """A process that has memory. `vmas` are by address and do not overlap."""

    pid: int  # as it sees itself
    parent: int
    executable: int  # id of the file
    vmas: list[pb.Vma]


def records(data: bytes, pos: int, name: str) -> Iterator[bytes]:
    """The messages of an image from `pos` on."""
    while pos < len(data):
        stop = pos + 4 + int.from_bytes(data[pos : pos + 4], "little")
        if pos + 4 > len(data) or stop > len(data):
            raise NotIndexable(f"{name} is cut off")
        yield data[pos + 4 : stop]
        pos = stop


def read(images: Path, name: str, magic: int) -> bytes:
    """The bytes of an image whose magic numbers are right. Its records begin at byte 8."""
    data = read_plain(images / name)
    if data[:8] != _COMMON.to_bytes(4, "little") + magic.to_bytes(4, "little"):
        raise NotIndexable(f"{name} begins with other magic numbers")
    return data


def read_plain(path: Path) -> bytes:
    """The bytes of a regular file."""
    try:
        fd = open_file(path)
    except OSError as error:
        raise NotIndexable(f"cannot read {path.name}: {error.strerror}") from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST:
            raise NotIndexable(f"{path.name} is not a file of less than {_LARGEST} bytes")
        with open(fd, "rb", closefd=False) as file:
            return file.read(_LARGEST)
    except OSError as error:
        raise NotIndexable(f"cannot read {path.name}: {error.strerror}") from error
    finally:
        os.close(fd)


def check_version(images: Path) -> None:
    """Raise NotIndexable unless these are images of the version that we know, and whole ones."""
    if os.sysconf("SC_PAGESIZE") != PAGE:
        raise NotIndexable(f"this machine's pages have {os.sysconf('SC_PAGESIZE')} bytes")
    data = read_plain(images / "inventory.img")
    if data[:4] != INVENTORY.to_bytes(4, "little"):
        raise NotIndexable("inventory.img begins with another magic number")
    for record in records(data, 4, "inventory.img"):
        version = _decoded(pb.Inventory, record, "inventory.img").img_version
        if version != _VERSION:
            raise NotIndexable(f"images of version {version}, not {_VERSION}")
        break
    else:
        raise NotIndexable("inventory.img is empty")
    if os.path.lexists(images / "parent"):
        raise NotIndexable("the images need those of a parent")


def processes(images: Path) -> list[Process]:
    """The processes that have memory, by pid."""
    found = [_process(images, entry) for entry in tree(images)]
    return sorted((p for p in found if p is not None), key=lambda process: process.pid)


def tree(images: Path) -> list[pb.Process]:
    """The processes, also those that are dead, with their threads."""
    entries = _all(pb.Process, images, "pstree.img", PSTREE)
    if len({entry.pid for entry in entries}) != len(entries):
        raise NotIndexable("pstree.img has one pid twice")
    return entries


def _process(images: Path, entry: pb.Process) -> Process | None:
    name = f"mm-{entry.pid}.img"
    if not os.path.lexists(images / name):  # dead: nobody waited for it yet
        return None
    found = [_memory(record, name) for record in records(read(images, name, MM), 8, name)]
    if not found:
        return None
    mm = found[0]
    # Guards lie in mappings that are listed before; no page of theirs is in a pagemap.
    vmas = sorted((v for v in mm.vmas if not v.status & GUARD), key=lambda vma: vma.start)
    end = 0
    for vma in vmas:
        if not end <= vma.start < vma.end <= 1 << 64 or (vma.start | vma.end) % PAGE:
            raise NotIndexable(f"{name} has a mapping at {vma.start:#x} that cannot be")
        end = vma.end
    return Process(entry.pid, entry.ppid, mm.exe_file_id, vmas)


def _memory(record: bytes, name: str) -> pb.Mm:
    """The message, in a fifth of the time that it takes for thousands of mappings otherwise."""
    executable = ffi.new("uint32_t *")
    count = lib.thaw_mm_vmas(record, len(record), executable, ffi.NULL, 0)
    if count < 0:
        return _decoded(pb.Mm, record, name)
    found = ffi.new("struct thaw_vma[]", count)
    lib.thaw_mm_vmas(record, len(record), executable, found, count)
    vmas = (
        pb.Vma(start=start, end=end, pgoff=at, shmid=id, prot=prot, flags=flags, status=status)
        for start, end, at, id, prot, flags, status, _ in _VMA.iter_unpack(ffi.buffer(found))
    )
    return pb.Mm(exe_file_id=executable[0], vmas=vmas)


def mappings(images: Path, pid: int) -> list[pb.Vma]:
    """The mappings of one process, by address."""
    found = _process(images, pb.Process(pid=pid))
    return found.vmas if found is not None else []


def fillable(vma: pb.Vma) -> bool:
    """Whether another process can write into this mapping once CRIU has restored it.

    Not if it is read-only (process_vm_writev refuses), executable, a stack or locked (its pages
    are there already), of huge pages, or of a kind that we do not know.
    """
    kind = vma.status & _KINDS
    if vma.status & ~(_REGULAR | _HEAP | _MEMFD | _KINDS) or not vma.status & _REGULAR:
        return False
    if vma.prot & ~_READ != _WRITE:
        return False
    shared = kind == ANON_SHARED or (kind == FILE_SHARED and vma.status & _MEMFD)
    if not shared and kind not in (ANON_PRIVATE, FILE_PRIVATE):
        return False
    wanted = _SHARED if shared else _PRIVATE
    return vma.flags & ~(_ANONYMOUS | _NORESERVE) == wanted


def anonymous(vma: pb.Vma) -> bool:
    """Whether memory of this mapping that was never written is zero, and is nobody else's."""
    return vma.status & _KINDS == ANON_PRIVATE and bool(vma.flags & _ANONYMOUS)


def inherited(vma: pb.Vma, parents: pb.Vma) -> bool:
    """Whether CRIU lets a child's mapping share its pages with its parent's, which begins there.

    The same condition as in its check_cow_vmas (criu/mem.c).
    """
    return (
        vma.end == parents.end
        and _is_private(vma)
        and _is_private(parents)
        and not (vma.flags | parents.flags) & _HUGETLB
        and not (vma.flags ^ parents.flags) & (_GROWSDOWN | _ANONYMOUS)
        and (bool(vma.flags & _ANONYMOUS) or vma.shmid == parents.shmid)
    )


def _is_private(vma: pb.Vma) -> bool:
    return bool(vma.status & _REGULAR) and bool(vma.status & (ANON_PRIVATE | FILE_PRIVATE))


def restartable(images: Path, threads: list[int]) -> set[int]:
    """The pages (addresses) in which threads have their area for restartable sequences."""
    pages: set[int] = set()
    for thread in threads:
        name = f"core-{thread}.img"
        for core in _all(pb.Core, images, name, CORE)[:1]:
            area = core.thread_core.rseq_entry if core.thread_core is not None else None
            if area is not None and area.rseq_abi_pointer:
                last = area.rseq_abi_pointer + max(area.rseq_abi_size, 32) - 1
                if area.rseq_abi_size > PAGE:
                    raise NotIndexable(f"{name} has an area of {area.rseq_abi_size} bytes for rseq")
                pages |= {area.rseq_abi_pointer & -PAGE, last & -PAGE}
    return pages


class Memfds:
    """What memfd.img and files.img say of shared memory that has a file."""

    def __init__(self, images: Path) -> None:
        inodes = _optional(pb.MemfdInode, images, "memfd.img", MEMFD)
        files = _optional(pb.File, images, "files.img", FILES)
        shmids = {inode.inode_id: inode.shmid for inode in inodes}
        self._shmids = {
            file.id: shmids[file.memfd.inode_id]
            for file in files
            if file.memfd is not None and file.memfd.inode_id in shmids
        }
        self.writable = {
            inode.shmid
            for inode in inodes
            if not inode.seals & _WRITE_SEALS and inode.hugetlb_flag is None
        }
        counted = Counter(inode.shmid for inode in inodes)
        self.writable -= {shmid for shmid, times in counted.items() if times > 1}

    def object_of(self, vma: pb.Vma) -> int | None:
        """The shmid of the shared memory that is mapped there, as pagemaps are named after it."""
        if vma.status & ANON_SHARED:
            return vma.shmid
        if vma.status & FILE_SHARED and vma.status & _MEMFD:
            return self._shmids.get(vma.shmid)
        return None

    def may_write(self, vma: pb.Vma) -> bool:
        """Whether shared memory that `vma` maps is not sealed, as far as that can be known."""
        return not vma.status & _MEMFD or self._shmids.get(vma.shmid) in self.writable


def is_pagemap(name: str) -> bool:
    """Whether an image says which pages of a process, or of shared memory, there are."""
    return name.startswith("pagemap-")


def pagemaps(images: Path) -> tuple[dict[int, str], dict[int, str]]:
    """The names of the pagemaps that are there: of processes by pid, of shared memory by shmid."""
    private: dict[int, str] = {}
    shared: dict[int, str] = {}
    for name in os.listdir(images):
        if found := _NUMBERED.fullmatch(name):
            (shared if found[1] else private)[int(found[2])] = name
        elif is_pagemap(name):
            raise NotIndexable(f"{name} is a pagemap of nobody")
    return private, shared


def _all(kind: type[_M], images: Path, name: str, magic: int) -> list[_M]:
    return [_decoded(kind, r, name) for r in records(read(images, name, magic), 8, name)]


def _optional(kind: type[_M], images: Path, name: str, magic: int) -> list[_M]:
    return _all(kind, images, name, magic) if os.path.lexists(images / name) else []


def _decoded(kind: type[_M], record: bytes, name: str) -> _M:
    try:
        return kind.decode(record)
    except WireError as error:
        raise NotIndexable(f"{name}: {error.message}") from error
