"""Regions of GPU memory handed to a restored process, which maps them where it had its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shim.errors import GpuFailed, RestoreFailed
from shim.gpu.memory.device import Memory
from shim.gpu.memory.library import Library, NotTaken, Piece, close_all
from shim.gpu.memory.making import Delivered, Shared
from shim.gpu.memory.wire import Memory as Record
from shim.gpu.memory.wire import State
from shim.snapshot.cuda import GpuRegion

_HINT = "what the process was restored from is not what it was, or its library is another one"


def library_of(pid: int, inside: int) -> Library:
    """That of a process; `inside` is its pid in the container. Raises RestoreFailed, GpuFailed."""
    found = Library.of(pid)
    if found is None:
        raise RestoreFailed(
            f"process {inside} of the container has GPU memory to get, and nobody to take it",
            hint=_HINT,
        )
    return found


def give(
    library: Library,
    listed: Sequence[GpuRegion],
    regions: Sequence[Shared],
    memory: Callable[[], Memory],
) -> None:
    """Have it take these for what it had: `listed`. It does not go on yet.

    `memory`: the driver's calls, for a process that takes none from others. Raises GpuFailed.
    """
    library.hello()
    if library.state is not State.EMPTIED:
        raise GpuFailed(
            f"process {library.pid} has no room for its GPU memory: its library is "
            f"{library.state.name.lower()}",
            hint=_HINT,
        )
    records = [Record(entry.id, entry.size, entry.device) for entry in listed]
    try:
        _hand_over(library, records, regions)
    except NotTaken:
        _have_made(library, records, regions, memory())


def _hand_over(library: Library, records: Sequence[Record], regions: Sequence[Shared]) -> None:
    pieces: list[Piece] = []
    try:
        for record, region in zip(records, regions, strict=True):
            pieces.append(Piece(record, region.descriptor()))
        library.give(pieces)
    finally:
        close_all(pieces)


def _have_made(
    library: Library, records: Sequence[Record], regions: Sequence[Shared], memory: Memory
) -> None:
    """The other way round: it makes its memory, and we copy there what we have.

    A process that the driver has restored on another GPU takes none that others have made
    (580.159.04 answers INVALID_DEVICE). Room is needed for one more piece at a time.
    """
    for record, region in zip(records, regions, strict=True):
        made = library.make(record)
        if made is not None:
            try:
                ours = region.opened(memory) if isinstance(region, Delivered) else region
                with ours, memory.take(region.uuid, region.size, made.fd) as theirs:
                    ours.copy_to(theirs)
            finally:
                close_all([made])
        region.close()
