"""Takes the GPU memory of a process away and gives it back, as a snapshot does, without a dump.

    python -m gpu.away PID LIBCUDA TIMES      prints how many bytes it was each time

Run in the product's environment: compute-sanitizer's own memory in a process cannot be dumped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

from shim.errors import Unfit
from shim.gpu.memory import suspend
from shim.gpu.memory.device import Memory
from shim.gpu.memory.suspend import Movement
from shim.timeline import Timeline

SECONDS = 60.0  # for its work to come to rest: a tool makes that slow
_MOST = 1 << 40  # bytes: more than any GPU has


def main(words: Sequence[str]) -> None:
    """Do it. Raises Unfit if there is nothing to be taken, and as Movement does."""
    pid, library, times = int(words[0]), words[1], int(words[2])
    with closing(Memory.open(library)) as memory:
        for _ in range(times):
            print(once(memory, pid), flush=True)


def once(memory: Memory, pid: int) -> int:
    """How many bytes were away."""
    found = suspend.ask([pid], lambda _: "it was started without the library")
    try:
        one = found[pid]
        if one.library is None or one.about is None:
            raise Unfit(f"process {pid} has no GPU memory library", hint=one.reason)
        moving = {pid: (one.library, one.about)}
        with Movement(memory, moving, Timeline(), SECONDS, _MOST) as movement:
            return sum(region.size for region in movement.regions(pid))
    finally:
        suspend.close(found.values())


if __name__ == "__main__":
    main(sys.argv[1:])
