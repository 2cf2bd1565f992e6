"""A worker's images with some of everything that can be looked into, and a snapshot of them."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fakes import snapshots
from fakes.images import BASE, Images, noise, vma
from shim.proto import criu_pb as pb
from shim.snapshot import images as criu
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.indexing import make
from shim.snapshot.inspection import FS, IDS, MOUNTS
from shim.snapshot.opened import FDINFO
from shim.snapshot.pieces import Pieces
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.store import Store

KIB = 1 << 10
_SECCOMP = 0x64413049
_SETS = ("cap_inh", "cap_prm", "cap_eff", "cap_bnd", "cap_amb")
HEAP, ANONYMOUS, CODE, SHARED, STACK = (BASE + n * (16 << 20) for n in range(5))
HEAP_SIZE, SHARED_SIZE = 128 * KIB, 256 * KIB
WEIGHTS = noise(SHARED_SIZE, 3)


def _word(address: str) -> int:
    found: int = struct.unpack("<I", bytes(map(int, address.split("."))))[0]
    return found


FILES = [
    pb.File(type=pb.FD_REGULAR, id=1, reg=pb.RegularFile(id=1, name=b"/usr/bin/server")),
    pb.File(type=pb.FD_REGULAR, id=2, reg=pb.RegularFile(id=2, name=b"/srv/log\xff")),
    pb.File(type=pb.FD_PIPE, id=3, pipe=pb.PipeFile(id=3, pipe_id=77, flags=1)),
    pb.File(
        type=pb.FD_INET,
        id=4,
        isk=pb.InetSocket(
            id=4, ino=40, family=2, type=1, state=10, src_port=8080, src_addr=[_word("10.0.0.7")]
        ),
    ),
    pb.File(
        type=pb.FD_INET,
        id=5,
        isk=pb.InetSocket(
            id=5,
            ino=50,
            family=10,
            type=1,
            state=1,
            src_port=9,
            dst_port=443,
            src_addr=[0, 0, 0, 1 << 24],
            dst_addr=[0, 0, 0, 1 << 24],
        ),
    ),
    pb.File(
        type=pb.FD_UNIX,
        id=6,
        usk=pb.UnixSocket(id=6, ino=60, type=1, state=1, peer=70, name=b"\0x"),
    ),
    pb.File(type=pb.FD_UNIX, id=7, usk=pb.UnixSocket(id=7, ino=70, type=1, state=1, peer=60)),
    pb.File(type=pb.FD_MEMFD, id=8, memfd=pb.MemfdFile(id=8, inode_id=1)),
    pb.File(type=pb.FD_EVENTFD, id=9, efd=pb.EventFile(id=9, counter=5)),
    pb.File(type=pb.FD_REGULAR, id=10, reg=pb.RegularFile(id=10, name=b"/srv")),
]


def images(folder: Path, heap: bytes = noise(HEAP_SIZE, 1)) -> Path:
    """A server (1) with two threads, its child (7), a dead child (9), and shared memory."""
    made = Images(folder)
    page = noise(4 * KIB, 4)
    shared = vma(SHARED, SHARED_SIZE, "memfd", shmid=8)
    server = [
        vma(HEAP, HEAP_SIZE, "heap"),
        vma(ANONYMOUS, 1024 * KIB),
        vma(CODE, 8 * KIB, "file", prot=5, shmid=1),
        shared,
        vma(STACK, 64 * KIB, flags=0x122),
    ]
    zeros = noise(512 * KIB, 2) + bytes(512 * KIB)
    memory = {HEAP: heap, ANONYMOUS: zeros, CODE: page, STACK: page}
    made.process(1, server, memory, rseq={1: 0, 2: 0})
    made.process(7, [vma(CODE, 8 * KIB, "file", shmid=1), shared], {CODE: page}, parent=1)
    made.zombie(9)
    made.memfd(8, 5, {0: WEIGHTS})
    made.write()
    made.put("files.img", criu.FILES, *FILES)
    inode = pb.MemfdInode(shmid=5, inode_id=1, seals=1, name=b"weights", size=SHARED_SIZE)
    made.put("memfd.img", criu.MEMFD, inode)
    _threads(made)
    descriptors = [pb.Descriptor(id=n, fd=n - 2, type=FILES[n - 1].type) for n in range(2, 10)]
    made.put("fdinfo-2.img", FDINFO, *descriptors)
    made.put("fdinfo-3.img", FDINFO, descriptors[2])
    made.put("fs-1.img", FS, pb.Fs(cwd_id=10, root_id=10))
    made.put(
        "mountpoints-12.img",
        MOUNTS,
        pb.Mount(
            fstype=pb.FSTYPE_UNKNOWN,
            mnt_id=2,
            mountpoint=b"/data",
            fsname=b"fuse.x",
            source=b"x",
            root=b"/",
            ext_key=b"/data",
        ),
        pb.Mount(
            fstype=pb.FSTYPE_OVERLAYFS, mnt_id=1, mountpoint=b"/", source=b"overlay", root=b"/"
        ),
    )
    return folder


def _threads(made: Images) -> None:
    root = _creds()
    thread = pb.ThreadCore(creds=root, seccomp_mode=pb.SECCOMP_DISABLED)
    alive = pb.TaskCore(task_state=pb.TASK_ALIVE, comm=b"server")
    made.put("core-1.img", criu.CORE, pb.Core(mtype=1, tc=alive, thread_core=thread))
    made.put("core-2.img", criu.CORE, pb.Core(mtype=1, thread_core=thread))
    user = _creds()
    user.uid = user.euid = user.suid = user.fsuid = 1000
    user.gid = user.egid = user.sgid = user.fsgid = 100
    thread = pb.ThreadCore(creds=user, seccomp_mode=pb.SECCOMP_FILTER)
    stopped = pb.TaskCore(task_state=pb.TASK_STOPPED, comm=b"worker")
    core = pb.Core(mtype=1, tc=stopped, thread_core=thread, ids=pb.Ids(files_id=3))
    made.put("core-7.img", criu.CORE, core)
    dead = pb.TaskCore(task_state=pb.TASK_ZOMBIE)
    made.put("core-9.img", criu.CORE, pb.Core(mtype=1, tc=dead))
    made.put("ids-1.img", IDS, pb.Ids(files_id=2))
    allow = struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)  # BPF_RET, SECCOMP_RET_ALLOW
    filters = pb.SeccompFilters(filters=[pb.SeccompFilter(filter=allow)])
    made.put("seccomp.img", _SECCOMP, filters)


def _creds() -> pb.Creds:
    made = pb.Creds(no_new_privs=1)
    for name in _SETS:
        setattr(made, name, [0, 0])
    return made


def snapshot(
    store: Store,
    name: str,
    what: SnapshotConfig = snapshots.CONFIG,
    contents: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Snapshot:
    """A snapshot of such images in a store; `changes` are theirs, `contents` its archives'."""
    with store.draft(name) as draft:
        folder = draft.path / "criu"
        images(folder, **changes)
        pages = draft.path / "pages"
        pages.mkdir(exist_ok=True)
        Pieces([pages]).take(folder)
        make(folder, draft.path / "index", pages=[pages])
        kept = {
            f"{part}/{path.name}": path.read_bytes()
            for part in ("criu", "index")
            for path in (draft.path / part).iterdir()
        }
        sizes = {path.name: path.stat().st_size for path in pages.iterdir()}
        data = {path: (pages / path).read_bytes() for path in sizes}
        archives = {n: f for n, f in what.files.items() if ".tar." in n}
        for part in ("criu", "index", "pages"):
            shutil.rmtree(draft.path / part)
        made = replace(what, files=archives, pages=sizes)
        snapshots.write(draft.path, made, {**kept, **(contents or {})})
        for path, bytes_ in data.items():
            (pages / path).write_bytes(bytes_)
    return store.snapshot(draft.id)
