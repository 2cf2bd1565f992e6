"""How much memory buffers may take: what the operator allows, but never most of what is left."""

from __future__ import annotations

GIB = 1 << 30
_SHARE = 0.5  # of the memory that is available


def budget_of(wanted: float, free: int) -> int:
    """Bytes for buffers: `wanted` GiB, but no more than a share of the `free` bytes."""
    return int(min(wanted * GIB, free * _SHARE))


def available() -> int:
    """Bytes of memory that could be had without swapping (MemAvailable of proc(5))."""
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0
