"""Processes whose GPU memory an engine has, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from fakes.gpu import Program
from fakes.gpu_peer import Peer
from shim.gpu.memory import suspend
from shim.gpu.memory.device import Memory
from shim.gpu.memory.keeper import Keeper
from shim.gpu.memory.suspend import Movement
from shim.timeline import Timeline

MOST = 1 << 30  # bytes


@contextmanager
def movement(
    memory: Memory,
    processes: Sequence[Program] | Sequence[Peer],
    timeline: Timeline | None = None,
    *,
    seconds: float = 1.0,
    most: int = MOST,
    keeper: Keeper | None = None,
    gpus: Collection[str] | None = None,
) -> Iterator[Movement]:
    """All of them have a library."""
    found = suspend.ask([process.pid for process in processes], lambda _: "none")
    having = {}
    for pid, one in found.items():
        assert one.library is not None
        assert one.about is not None
        having[pid] = (one.library, one.about)
    try:
        told = timeline or Timeline()
        with Movement(memory, having, told, seconds, most, keeper, gpus) as moved:
            yield moved
    finally:
        suspend.close(found.values())
