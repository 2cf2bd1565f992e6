"""Looking into a snapshot: its processes, what they have open and mapped, and where that lies.

All of it comes from CRIU's images and the index beside them, which are untrusted: whatever their
bytes are, `look` returns what they say, or Unfit is raised. It reads no pages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from shim.errors import Unfit
from shim.proto import criu_pb as pb
from shim.proto.wire import Message, WireError
from shim.snapshot import images as criu
from shim.snapshot.images import Memfds, NotIndexable
from shim.snapshot.index import DOCUMENT, Index
from shim.snapshot.opened import Files, OpenFile, Socket, decoded
from shim.snapshot.resident import NONE, PRIVATE, SHARED, Bytes, Contents, Space, contents, mapped

_M = TypeVar("_M", bound=Message)

IDS, FS, MOUNTS = 0x54432030, 0x51403912, 0x55563928

# Status of a mapping beyond what the index knows (criu/include/image.h).
_STACK, _VSYSCALL, _VDSO, _HEAP = 1 << 1, 1 << 2, 1 << 3, 1 << 5
_VVAR, _AIORING, _MEMFD = 1 << 12, 1 << 13, 1 << 14
_GROWSDOWN, _HUGETLB = 0x100, 0x40000  # mmap's flags
_STATES = {
    pb.TASK_ALIVE: "alive",
    pb.TASK_DEAD: "dead",
    pb.TASK_STOPPED: "stopped",
    pb.TASK_ZOMBIE: "zombie",
}
_SECCOMP = {pb.SECCOMP_DISABLED: "", pb.SECCOMP_STRICT: "strict", pb.SECCOMP_FILTER: "filter"}
_FILESYSTEMS = {
    number: name.removeprefix("FSTYPE_").lower()
    for name, number in vars(pb).items()
    if name.startswith("FSTYPE_") and number not in (0, pb.FSTYPE_AUTO)
}
_MOUNTPOINTS = re.compile(r"mountpoints-[0-9]{1,10}\.img")


@dataclass(frozen=True)
class Mapping:
    """A mapping of a process. Of memory that others map too, the bytes are here all the same."""

    start: int
    end: int
    protection: str  # as /proc/PID/maps has it
    kind: str  # "heap", "stack", "anonymous", "file", "shared", "memfd", "sysv", "hugetlb", …
    name: str  # path of the file, or name of the memfd
    offset: int  # in the file or the shared object
    space: Space  # whose pages these are
    bytes: Bytes


@dataclass(frozen=True)
class SharedObject:
    """Memory that several mappings may show; its bytes, once."""

    number: int  # CRIU's
    kind: str
    name: str
    pids: list[int]
    extents: int
    bytes: Bytes


@dataclass(frozen=True)
class Process:
    """A process of the tree, by the pids that it sees itself."""

    pid: int
    parent: int
    threads: list[int]
    name: str  # as ps shows it; the kernel keeps 15 bytes
    executable: str
    directory: str
    state: str
    user: int | None  # effective; None if it is not known
    group: int | None
    seccomp: str  # "", "strict" or "filter"
    no_new_privileges: bool
    files: list[OpenFile]
    mappings: list[Mapping]
    extents: int  # of private memory
    bytes: Bytes  # of private memory


@dataclass(frozen=True)
class Mounted:
    """A mount of the container as CRIU saw it."""

    path: str
    type: str
    source: str
    root: str  # what of the file system is mounted
    external: str  # the name under which CRIU is told what to mount there; empty: its own affair


@dataclass
class Inspection:
    """All that was found. `notes` say what could not be."""

    processes: list[Process] = field(default_factory=list)
    shared: list[SharedObject] = field(default_factory=list)
    sockets: list[Socket] = field(default_factory=list)
    mounts: list[Mounted] = field(default_factory=list)
    gpu: list[str] = field(default_factory=list)  # none yet
    notes: list[str] = field(default_factory=list)
    spaces: dict[Space, Contents] = field(default_factory=dict)

    @property
    def total(self) -> Bytes:
        """All memory, what is shared once."""
        return summed([p.bytes for p in self.processes] + [s.bytes for s in self.shared])

    @property
    def extents(self) -> int:
        """The number of extents."""
        return sum(len(space.extents) for space in self.spaces.values())


def summed(parts: Iterable[Bytes]) -> Bytes:
    """The sum of each."""
    return sum(parts, NONE)


def look(
    images: Path, index: Path | None = None, pages: Sequence[Path] | None = None
) -> Inspection:
    """Look into the images in a folder, with the index in another one. Raises Unfit.

    `pages` are the folders with the pieces of the pages; None: they are whole, beside the images.
    """
    with _refusing(images):
        found = Inspection()
        _check_version(images, found.notes)
        opened = _index(index, images, pages, found.notes)
        processes = criu.processes(images)
        found.spaces = contents(images, processes, opened, found.notes)
        look = _Look(images, found, {process.pid: process for process in processes})
        found.processes = [look.process(entry) for entry in criu.tree(images)]
        found.shared = look.shared()
        found.sockets = look.files.sockets()
        found.mounts = list(_mounts(images))
        return found


@contextmanager
def _refusing(images: Path) -> Iterator[None]:
    try:
        yield
    except (NotIndexable, WireError) as error:
        raise Unfit(
            f"{images}: {error}", hint="these are no images of CRIU 4.2, or damaged"
        ) from error
    except OSError as error:
        raise Unfit(f"cannot read {error.filename or images}: {error.strerror}") from error


def _check_version(images: Path, notes: list[str]) -> None:
    if not (images / "inventory.img").is_file():
        raise Unfit(f"{images} has no CRIU images in it", hint="the folder with inventory.img")
    try:
        criu.check_version(images)
    except NotIndexable as error:
        notes.append(str(error))


def _index(
    folder: Path | None, images: Path, pages: Sequence[Path] | None, notes: list[str]
) -> Index | None:
    if folder is None or not os.path.lexists(folder / DOCUMENT):
        notes.append("there is no index: CRIU restores all memory")
        return None
    try:
        found = Index.open(folder, images, pages)
    except Unfit as error:
        notes.append(error.message)
        return None
    if found.reason:
        notes.append(f"not indexed, CRIU restores all memory: {found.reason}")
    return found


class _Look:
    """One look at the processes."""

    def __init__(
        self, images: Path, found: Inspection, with_memory: dict[int, criu.Process]
    ) -> None:
        self.files = Files(images)
        self._images = images
        self._spaces = found.spaces
        self._memory = with_memory
        self._memfds = Memfds(images)
        self._seen: dict[int, list[tuple[int, pb.Vma, str, str]]] = {}  # shared objects, by number

    def process(self, entry: pb.Process) -> Process:
        core = next(iter(self._decoded(pb.Core, f"core-{entry.pid}.img", criu.CORE)), pb.Core())
        task, thread = core.tc or pb.TaskCore(), core.thread_core or pb.ThreadCore()
        mode = thread.seccomp_mode
        creds = thread.creds
        memory = self._memory.get(entry.pid)
        mappings = [self._mapping(memory, vma) for vma in memory.vmas] if memory else []
        private = Space(PRIVATE, entry.pid)
        here = self._spaces.get(private)
        return Process(
            pid=entry.pid,
            parent=entry.ppid,
            threads=sorted(entry.threads),
            name=os.fsdecode(task.comm.rstrip(b"\0")),
            executable=self.files.name(memory.executable) if memory else "",
            directory=self._directory(entry.pid),
            state=_STATES.get(task.task_state, "unknown"),
            user=creds.euid if creds is not None else None,
            group=creds.egid if creds is not None else None,
            seccomp=_SECCOMP.get(task.old_seccomp_mode or 0 if mode is None else mode, "unknown"),
            no_new_privileges=bool(creds is not None and creds.no_new_privs),
            files=self._open(core, entry.pid),
            mappings=mappings,
            extents=len(here.extents) if here is not None else 0,
            bytes=summed([m.bytes for m in mappings if m.space == private]),
        )

    def shared(self) -> list[SharedObject]:
        """The shared objects that were seen, and those whose pages are there unmapped."""
        there = {space.number for space in self._spaces if space.kind == SHARED}
        return [self._object(number) for number in sorted(there | self._seen.keys())]

    def _object(self, number: int) -> SharedObject:
        seen = self._seen.get(number, [])
        here = self._spaces.get(Space(SHARED, number), Contents())
        size = max((vma.pgoff + vma.end - vma.start for _, vma, _, _ in seen), default=0)
        _, _, kind, name = seen[0] if seen else (0, None, "unmapped", "")
        pids = sorted({pid for pid, _, _, _ in seen})
        # What lies beyond its mappings counts too.
        total = here.measured(0, criu.TOP, size)
        return SharedObject(number, kind, name, pids, len(here.extents), total)

    def _mapping(self, process: criu.Process, vma: pb.Vma) -> Mapping:
        space, start = mapped(process, vma, self._memfds)
        length = vma.end - vma.start
        kind, name = _kind(vma), ""
        if vma.status & (criu.FILE_PRIVATE | criu.FILE_SHARED):
            name = self.files.name(vma.shmid)
        if space.kind == SHARED:
            self._seen.setdefault(space.number, []).append((process.pid, vma, kind, name))
        found = self._spaces.get(space)
        measured = (
            found.measured(start, start + length, length) if found else Bytes(length, 0, 0, 0, 0)
        )
        return Mapping(vma.start, vma.end, _protection(vma), kind, name, vma.pgoff, space, measured)

    def _open(self, core: pb.Core, pid: int) -> list[OpenFile]:
        ids = core.ids or next(iter(self._decoded(pb.Ids, f"ids-{pid}.img", IDS)), None)
        return self.files.of(pid, ids.files_id) if ids is not None else []

    def _directory(self, pid: int) -> str:
        for found in self._decoded(pb.Fs, f"fs-{pid}.img", FS)[:1]:
            return self.files.name(found.cwd_id)
        return ""

    def _decoded(self, kind: type[_M], name: str, magic: int) -> list[_M]:
        return decoded(kind, self._images, name, magic)


def _kind(vma: pb.Vma) -> str:
    named = (
        (_HEAP, "heap"),
        (_STACK, "stack"),
        (_VDSO, "vdso"),
        (_VVAR, "vvar"),
        (_VSYSCALL, "vsyscall"),
        (_AIORING, "aio"),
        (criu.SYSVIPC, "sysv"),
    )
    for bit, word in named:
        if vma.status & bit:
            return word
    if vma.flags & _HUGETLB:
        return "hugetlb"
    if vma.flags & _GROWSDOWN:
        return "stack"
    return _by_backing(vma.status)


def _by_backing(status: int) -> str:
    if status & criu.FILE_SHARED:
        return "memfd" if status & _MEMFD else "file-shared"
    if status & criu.FILE_PRIVATE:
        return "file-private"
    return "shared" if status & criu.ANON_SHARED else "anonymous"


def _protection(vma: pb.Vma) -> str:
    letters = "".join(c if vma.prot & 1 << n else "-" for n, c in enumerate("rwx"))
    return letters + ("s" if vma.flags & 1 else "p")


def _mounts(images: Path) -> Iterator[Mounted]:
    names = sorted(name for name in os.listdir(images) if _MOUNTPOINTS.fullmatch(name))
    found = [mount for name in names for mount in decoded(pb.Mount, images, name, MOUNTS)]
    for mount in sorted(found, key=lambda mount: mount.mountpoint):
        yield Mounted(
            path=os.fsdecode(mount.mountpoint),
            type=_FILESYSTEMS.get(mount.fstype)
            or os.fsdecode(mount.fsname)
            or ("bind" if mount.ext_key else "unknown"),
            source=os.fsdecode(mount.source),
            root=os.fsdecode(mount.root),
            external=os.fsdecode(mount.ext_key),
        )
