"""Pictures of the memory of a process tree, taken from outside, and what two of them differ in.

A picture has every area of every process, with a digest of each page that holds something: pages of
zeros and pages that are not there read the same and count as the same. Private memory is read
through /proc/PID/mem; shared memory through its file, as a page may be there without being in the
page table of anybody. They are taken once nothing runs, as whoever has said that it is done still
has to get to where it waits for more. Needs root.

What differs rightfully is left out: [vvar] and [vsyscall], which are the kernel's, the contents of
[vdso], inode numbers, and where equal neighbours are two areas or one. What the kernel writes into
a thread's rseq area is not: a program under test should have none (see ENVIRONMENT in zoo.py).
"""

from __future__ import annotations

import os
import re
import stat
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from bench.bare import tree

PAGE = 4096
# grows down, locked, not reserved, not forked, not dumped, wiped on fork, huge pages wanted or
# unwanted, mergeable, read in order or at random, shadow stack
FLAGS = frozenset(["gd", "lo", "nr", "dc", "dd", "wf", "hg", "nh", "mg", "sr", "rr", "ss"])
_KERNELS = ("[vvar", "[vsyscall]")
_GUARD = "guard"
_ZERO = bytes(PAGE)
_PRESENT = 1 << 63
_SWAPPED = 1 << 62
_OF_A_FILE = 1 << 61
_CHUNK = 1 << 20
_SECONDS = 60.0
_GHOST = re.compile(r"\.cr\.[0-9a-f]+\.ghost")
# Of /proc/PID/stat, counted from the state: code, stack; data, brk, arguments, environment.
_LAYOUT = [23, 24, 25, *range(42, 49)]


@dataclass(frozen=True)
class Area:
    """Neighbouring pages that are alike; `pages` maps addresses to digests."""

    start: int
    end: int
    access: str
    what: str  # a path, or a name of the kernel's in brackets; empty: anonymous
    flags: frozenset[str]
    offset: int  # in the file
    pages: Mapping[int, str] = field(repr=False)

    def __str__(self) -> str:
        flags = " ".join(sorted(self.flags))
        return f"{self.start:x}-{self.end:x} {self.access} {self.what or 'anonymous'} {flags}"


@dataclass(frozen=True)
class Process:
    """A process as it is seen in its own pid namespace."""

    name: str
    threads: tuple[int, ...]
    layout: tuple[int, ...]
    areas: tuple[Area, ...]
    memfds: Mapping[int, Mapping[int, str]] = field(repr=False)  # by descriptor, by offset


def picture(pid: int) -> dict[int, Process]:
    """All processes from `pid` downwards, by their pids in their own namespace."""
    files: dict[tuple[int, int], Mapping[int, str]] = {}
    pids = tree(pid)
    _wait_for_rest(pids)
    return {_inner(f"/proc/{each}/status"): _process(each, files) for each in pids}


def _wait_for_rest(pids: list[int]) -> None:
    """Return when all threads sleep at the same time: then none of them will wake another."""
    ends = time.monotonic() + _SECONDS
    before: dict[str, str] = {}
    while not (now := _sleepers(pids)) or now != before:
        if time.monotonic() > ends:
            raise TimeoutError(f"processes {pids} do not come to rest")
        before = now
        time.sleep(0.01)


def _sleepers(pids: list[int]) -> dict[str, str]:
    """How often each thread has gone to sleep; nothing if one of them is awake."""
    found: dict[str, str] = {}
    for pid in pids:
        for thread in _names(Path(f"/proc/{pid}/task")):
            lines = Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines()
            fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if not fields["State"].startswith("S"):
                return {}
            found[thread] = fields["voluntary_ctxt_switches"]
    return found


def differences(before: Mapping[int, Process], after: Mapping[int, Process]) -> list[str]:
    """What is not the same, one line each; nothing if all is."""
    told = [f"process {pid} is only in one" for pid in before.keys() ^ after.keys()]
    for pid in sorted(before.keys() & after.keys()):
        told += [f"process {pid}: {line}" for line in _process_differs(before[pid], after[pid])]
    return told


def _process_differs(before: Process, after: Process) -> Iterator[str]:
    for what in ("name", "threads", "layout"):
        was, now = getattr(before, what), getattr(after, what)
        if was != now:
            yield f"{what} was {was}, is {now}"
    old = {str(area): area for area in before.areas}
    new = {str(area): area for area in after.areas}
    yield from (f"lacks {area}" for area in old if area not in new)
    yield from (f"has {area}" for area in new if area not in old)
    for key in old.keys() & new.keys():
        yield from _pages_differ(key, old[key].pages, new[key].pages)
    if before.memfds.keys() != after.memfds.keys():
        yield f"memfds were {sorted(before.memfds)}, are {sorted(after.memfds)}"
    for fd in before.memfds.keys() & after.memfds.keys():
        yield from _pages_differ(f"descriptor {fd}", before.memfds[fd], after.memfds[fd])


def _pages_differ(what: str, before: Mapping[int, str], after: Mapping[int, str]) -> Iterator[str]:
    changed = sorted(
        page for page in before.keys() | after.keys() if before.get(page) != after.get(page)
    )
    if changed:
        first = changed[0]
        was, now = before.get(first, "zero"), after.get(first, "zero")
        yield f"{what}: {len(changed)} pages, the first {first:x}: was {was}, is {now}"


def _process(pid: int, files: dict[tuple[int, int], Mapping[int, str]]) -> Process:
    folder = Path(f"/proc/{pid}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return Process(
        name=(folder / "comm").read_text().strip(),
        threads=tuple(sorted(_inner(f"{folder}/task/{t}/status") for t in _names(folder / "task"))),
        layout=tuple(int(fields[n]) for n in _LAYOUT),
        areas=tuple(_merged(_areas(pid, files))),
        memfds={
            int(fd): _file_pages(f"{folder}/fd/{fd}", files)
            for fd in _names(folder / "fd")
            if os.readlink(f"{folder}/fd/{fd}").startswith("/memfd:")
        },
    )


def _areas(pid: int, files: dict[tuple[int, int], Mapping[int, str]]) -> Iterator[Area]:
    mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for area in _headers(pid):
            if area.what.startswith(_KERNELS):
                continue
            if "s" in area.access:
                pages = _in_area(area, _file_pages(_file_of(pid, area), files))
            elif area.what == "[vdso]":
                pages = {}
            else:
                pages = dict(_private_pages(area, mem, pagemap))
                if area.what.startswith("/"):
                    pages = _unlike(_file_of(pid, area), area, pages, files)
            yield replace(area, pages=pages)
    finally:
        os.close(mem)
        os.close(pagemap)


def _headers(pid: int) -> Iterator[Area]:
    """The areas of /proc/PID/smaps without their pages."""
    head: list[str] = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("VmFlags:"):
            start, end = (int(word, 16) for word in head[0].split("-"))
            what = _name(head[5] if len(head) > 5 else "")
            flags = frozenset(line.split()[1:]) & FLAGS
            yield Area(start, end, head[1], what, flags, int(head[2], 16), {})
        elif not line.partition(" ")[0].endswith(":"):
            head = line.split(maxsplit=5)


def _name(path: str) -> str:
    """The same name for what CRIU has to give another: files without one, shared memory."""
    path = _GHOST.sub("", path.removesuffix(" (deleted)"))
    if path.startswith(("/dev/zero", "/memfd:/dev/zero")):
        return "[shared]"
    return path


def _merged(areas: Iterator[Area]) -> Iterator[Area]:
    last: Area | None = None
    for area in areas:
        if last is not None and _alike(last, area):
            last = replace(last, end=area.end, pages={**last.pages, **area.pages})
            continue
        if last is not None:
            yield last
        last = area
    if last is not None:
        yield last


def _alike(one: Area, next_one: Area) -> bool:
    follows = one.end == next_one.start and one.what == next_one.what
    if one.what.startswith(("/", "[shared]")):
        follows = follows and one.offset + one.end - one.start == next_one.offset
    return follows and (one.access, one.flags) == (next_one.access, next_one.flags)


def _private_pages(area: Area, mem: int, pagemap: int) -> Iterator[tuple[int, str]]:
    """Pages of the process's own; a page of zeros counts only if it hides one of a file."""
    of_a_file = area.what.startswith("/")
    for start, end in _runs(area, pagemap):
        for address, page in _read(mem, start, end):
            if page is None:
                yield address, _GUARD
            elif of_a_file or page != _ZERO:
                yield address, _digest(page)


def _runs(area: Area, pagemap: int) -> Iterator[tuple[int, int]]:
    """Runs of pages that are the process's own."""
    per_chunk = 4096
    run: tuple[int, int] | None = None
    for first in range(area.start, area.end, per_chunk * PAGE):
        count = min(per_chunk, (area.end - first) // PAGE)
        entries = array("Q", os.pread(pagemap, count * 8, first // PAGE * 8))
        if max(entries) < _SWAPPED:
            continue
        for n, entry in enumerate(entries):
            if entry < _SWAPPED or entry & _OF_A_FILE:
                continue
            address = first + n * PAGE
            if run is not None and (run[1] != address or run[1] - run[0] == _CHUNK):
                yield run
                run = None
            run = (run[0] if run else address, address + PAGE)
    if run is not None:
        yield run


def _read(mem: int, start: int, end: int) -> Iterator[tuple[int, bytes | None]]:
    """The pages of a run; None for those that cannot be read."""
    try:
        data = os.pread(mem, end - start, start)
    except OSError:
        data = b""
    if len(data) == end - start:
        for at in range(0, len(data), PAGE):
            yield start + at, data[at : at + PAGE]
    elif end - start == PAGE:
        yield start, None
    else:
        for address in range(start, end, PAGE):
            yield from _read(mem, address, address + PAGE)


def _file_of(pid: int, area: Area) -> str:
    return f"/proc/{pid}/map_files/{area.start:x}-{area.end:x}"


def _unlike(
    file: str,
    area: Area,
    pages: Mapping[int, str],
    files: dict[tuple[int, int], Mapping[int, str]],
) -> Mapping[int, str]:
    """The private pages that are not like the file's: CRIU itself writes a code page and back."""
    if not pages:
        return pages
    below = _in_area(area, _file_pages(file, files))
    return {at: digest for at, digest in pages.items() if digest != below.get(at, _digest(_ZERO))}


def _in_area(area: Area, pages: Mapping[int, str]) -> Mapping[int, str]:
    size = area.end - area.start
    return {
        area.start + offset - area.offset: digest
        for offset, digest in pages.items()
        if 0 <= offset - area.offset < size
    }


def _file_pages(path: str, files: dict[tuple[int, int], Mapping[int, str]]) -> Mapping[int, str]:
    """Digests of the pages of a file, by offset; read only once, whoever maps it."""
    status = os.stat(path)
    key = (status.st_dev, status.st_ino)
    if key not in files:
        files[key] = dict(_data(path)) if stat.S_ISREG(status.st_mode) else {}
    return files[key]


def _data(path: str) -> Iterator[tuple[int, str]]:
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        while position < size:
            try:
                # Holes of shared memory are not read: that would fill them.
                position = os.lseek(file.fileno(), position, os.SEEK_DATA) // PAGE * PAGE
            except OSError:
                return
            hole = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            for at in range(position, hole, PAGE):
                page = os.pread(file.fileno(), PAGE, at).ljust(PAGE, b"\0")
                if page != _ZERO:
                    yield at, _digest(page)
            position = hole


def _digest(page: bytes) -> str:
    return blake2b(page, digest_size=8).hexdigest()


def _inner(status: str) -> int:
    for line in Path(status).read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise LookupError(f"no NSpid in {status}")


def _names(folder: Path) -> list[str]:
    return os.listdir(folder)
