"""An engine that has taken GPU memory of processes, up to a point, and is killed over that.

    gpu_engine.py FOLDER SECONDS UNTIL PID…

The libraries of the processes and the keeper in FOLDER are as real as the test has them. It says
the keeper's pid, and waits. Started by `Engine`.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_PATIENCE = 30_000  # milliseconds
UNTIL = ("kept", "emptied", "given in part", "given")


class Engine:
    """It, having come as far as `until`, one of UNTIL; it is killed with the block at the latest.

    The processes are those that it is about; the first ends its keeper with it.
    """

    def __init__(
        self, folder: Path, pids: list[int], *, until: str = "emptied", seconds: float = 60.0
    ) -> None:
        command = [sys.executable, "-I", __file__, str(folder), str(seconds), until]
        command += map(str, pids)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said, "it has failed"
        self.keeper = int(said)
        self._keeper = os.pidfd_open(self.keeper)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
        os.close(self._keeper)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def keeper_ended(self, milliseconds: int = _PATIENCE) -> bool:
        """Whether its keeper has ended by then."""
        poll = select.poll()
        poll.register(self._keeper, select.POLLIN)
        return bool(poll.poll(milliseconds))


def main(folder: str, seconds: str, until: str, *words: str) -> None:
    from shim.gpu.memory.keeper import Keeper
    from shim.gpu.memory.library import Library

    pids = [int(word) for word in words]
    libraries = {pid: found for pid in pids if (found := Library.of(pid))}
    for library in libraries.values():
        library.hello()
        library.hold(5.0)
    pieces = {pid: library.export(1 << 40, 64) for pid, library in libraries.items()}
    with Keeper(Path(folder), [os.getppid(), pids[0]], seconds=float(seconds)) as keeper:
        keeper.keep(pieces)
        steps = UNTIL.index(until)
        for pid, library in libraries.items():
            if steps > 0:
                library.empty()
            if steps > 1:
                library.give(pieces[pid] if until == "given" else pieces[pid][:1])
        print(keeper.pid, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
