"""What there is of memory, and limits that a large worker meets."""

from __future__ import annotations

from collections.abc import Iterator

from shim.doctor.node import Node
from shim.doctor.verdict import Verdict, bad, ok

GIB = 1 << 30
# The kernel's defaults: a worker that ran on another node may have used as many.
_MAPPINGS, _FILES = 65530, 1 << 20
_THP = "/sys/kernel/mm/transparent_hugepage/enabled"


def huge_pages(node: Node) -> Iterator[Verdict]:
    """Memory that is filled may be made of huge pages, which is several times as quick."""
    words = node.read(_THP)
    chosen = words.partition("[")[2].partition("]")[0] or words
    if chosen == "never":
        yield bad(
            "transparent huge pages are off: memory is filled page by page",
            f"echo madvise > {_THP}",
        )
    else:
        yield ok(f"transparent huge pages: {chosen}")


def limits(node: Node) -> Iterator[Verdict]:
    """What a worker had when it was dumped can be had again."""
    wanted = (("vm/max_map_count", _MAPPINGS), ("fs/nr_open", _FILES))
    for name, least in wanted:
        found = int(node.read(f"/proc/sys/{name}"))
        key = name.replace("/", ".")
        if found < least:
            yield bad(f"{key} is {found}", f"sysctl -w {key}={least}", key)
        else:
            yield ok(f"{key} is {found}", key)


def memory(node: Node) -> Iterator[Verdict]:
    """There is as much memory as the configuration lets a pod read ahead; half of what is free."""
    wanted = node.config.number("restore.memory")
    free = _available(node.read("/proc/meminfo")) / GIB
    said = f"{free:.1f} GiB are available, restore.memory is {wanted:g} GiB"
    if free / 2 < wanted:
        yield bad(said, "less is read ahead than it says, or set restore.memory to half of that")
    else:
        yield ok(said)


def _available(table: str) -> int:
    for line in table.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise ValueError("/proc/meminfo has no MemAvailable")
