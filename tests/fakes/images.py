"""CRIU's images, made by hand: processes with memory, and what CRIU would restore from a folder."""

from __future__ import annotations

import os
import random
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from shim.proto import criu_pb as pb
from shim.proto.wire import Message
from shim.snapshot import images as criu
from shim.snapshot import pagemap
from shim.snapshot.images import PAGE
from shim.snapshot.index import Index

BASE = 0x7F00_0000_0000
LARGE = 128 << 10  # bytes; bulk
STATUS = {"private": 0x201, "heap": 0x221, "file": 0x41, "shared": 0x101, "memfd": 0x4081}
FLAGS = {"private": 0x22, "heap": 0x22, "file": 0x2, "shared": 0x21, "memfd": 0x1}
PRESENT, LAZY = 4, 6
_MOST = 256  # pages of an entry, as CRIU writes them

Memory = dict[int, bytes]  # address → contents, whole pages


def vma(start: int, size: int, kind: str = "private", **changes: int) -> pb.Vma:
    """A mapping that can be read and written, of one of the kinds in STATUS."""
    made = pb.Vma(start=start, end=start + size, prot=3, flags=FLAGS[kind], status=STATUS[kind])
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@lru_cache(maxsize=8)
def noise(size: int, seed: int = 0) -> bytes:
    """Random bytes, the same every time."""
    return random.Random(seed).randbytes(size)


def image(magic: int, *messages: Message | bytes) -> bytes:
    """An image with both magic numbers."""
    head = (0x54564319).to_bytes(4, "little") + magic.to_bytes(4, "little")
    return head + _records(messages)


def _records(messages: Sequence[Message | bytes]) -> bytes:
    parts = [m if isinstance(m, bytes) else m.encode() for m in messages]
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


class Images:
    """A folder of images; `write` after the last change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = 2
        self._tree: list[pb.Process] = []
        self._files: list[pb.File] = []
        self._inodes: list[pb.MemfdInode] = []
        self._pages = 0
        folder.mkdir(parents=True, exist_ok=True)

    def process(
        self,
        pid: int,
        vmas: Sequence[pb.Vma],
        memory: Memory,
        *,
        parent: int = 0,
        executable: int = 1,
        rseq: dict[int, int] | None = None,
        flags: int = LAZY,
    ) -> None:
        """A process; `rseq` maps its threads to the addresses of their areas."""
        threads = rseq or {pid: 0}
        others = [thread for thread in threads if thread != pid]
        self._tree.append(pb.Process(pid=pid, ppid=parent, threads=[pid, *others]))
        mm = pb.Mm(exe_file_id=executable, vmas=vmas)
        self.put(f"mm-{pid}.img", criu.MM, mm)
        for thread, address in threads.items():
            area = pb.Rseq(rseq_abi_pointer=address, rseq_abi_size=32)
            core = pb.Core(thread_core=pb.ThreadCore(rseq_entry=area))
            self.put(f"core-{thread}.img", criu.CORE, core)
        self.pagemap(f"pagemap-{pid}.img", memory, flags)

    def zombie(self, pid: int) -> None:
        """A dead process that nobody has waited for."""
        self._tree.append(pb.Process(pid=pid, ppid=1))

    def shared(self, shmid: int, memory: Memory) -> None:
        """Shared memory; the addresses are offsets."""
        self.pagemap(f"pagemap-shmem-{shmid}.img", memory, PRESENT)

    def memfd(self, file: int, shmid: int, memory: Memory, **changes: Any) -> None:
        """A memfd, open as a file of that id."""
        inode = len(self._inodes) + 1
        self._files.append(pb.File(id=file, memfd=pb.MemfdFile(inode_id=inode)))
        made = pb.MemfdInode(shmid=shmid, inode_id=inode, seals=changes.get("seals", 1))
        made.hugetlb_flag = changes.get("hugetlb_flag")
        self._inodes.append(made)
        self.shared(shmid, memory)

    def pagemap(self, name: str, memory: Memory, flags: int = LAZY, *, wide: bool = True) -> None:
        """A pagemap and its pages file."""
        self._pages += 1
        head = image(criu.PAGEMAP, pb.PagemapHead(pages_id=self._pages))
        entries = [
            (at, min(_MOST, (address + len(data) - at) // PAGE), flags)
            for address, data in sorted(memory.items())
            for at in range(address, address + len(data), _MOST * PAGE)
        ]
        made = pagemap.Pagemap(name, f"pages-{self._pages}.img", head, wide, entries)
        (self.folder / name).write_bytes(pagemap.encode(made, entries))
        data = b"".join(data for _, data in sorted(memory.items()))
        if data:  # CRIU makes no file that nothing is written to
            (self.folder / made.pages).write_bytes(data)

    def put(self, name: str, magic: int, *messages: Message | bytes) -> None:
        """Any image."""
        (self.folder / name).write_bytes(image(magic, *messages))

    def write(self) -> Path:
        """Write the rest; the folder."""
        inventory = criu.INVENTORY.to_bytes(4, "little")
        inventory += _records([pb.Inventory(img_version=self.version)])
        (self.folder / "inventory.img").write_bytes(inventory)
        self.put("pstree.img", criu.PSTREE, *self._tree)
        if self._files:
            self.put("files.img", criu.FILES, *self._files)
            self.put("memfd.img", criu.MEMFD, *self._inodes)
        return self.folder


def single(folder: Path, memory: Memory, *vmas: pb.Vma) -> Path:
    """One process whose mappings hold its memory, unless they are given."""
    images = Images(folder)
    made = vmas or [vma(address, len(data)) for address, data in memory.items()]
    images.process(1, made, memory)
    return images.write()


def pages(folder: Path, name: str) -> dict[int, bytes]:
    """What CRIU restores from one pagemap: address → page."""
    found = pagemap.load((folder / name).resolve().parent, name)  # it may be a link
    path = folder / found.pages
    data = path.read_bytes() if path.exists() else b""
    assert len(data) == found.size
    places = [at for a, n, _ in found.entries for at in range(a, a + n * PAGE, PAGE)]
    assert len(places) == len(set(places))
    return {at: data[n * PAGE : (n + 1) * PAGE] for n, at in enumerate(places)}


def all_pages(folder: Path) -> dict[str, dict[int, bytes]]:
    """What CRIU restores from all pagemaps in a folder, by their names."""
    names = sorted(n for n in os.listdir(folder) if n.startswith("pagemap-"))
    return {name: pages(folder, name) for name in names}


def filled(index: Index) -> Iterator[tuple[int, int, int, bytes]]:
    """What is filled, page by page: pid, address, number of the extent's flags, page."""
    words, halves, quarters = (array(code, index.extents) for code in "QIH")
    for n in range(index.count):
        address, offset, length = words[4 * n], words[4 * n + 1], halves[8 * n + 4]
        data = index.paths[quarters[16 * n + 14]].read_bytes()[offset : offset + length]
        assert len(data) == length
        for at in range(0, length, PAGE):
            page = data[at : at + PAGE]
            yield index.tasks[halves[8 * n + 6]], address + at, quarters[16 * n + 15], page
