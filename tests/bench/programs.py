"""The benchmark's own programs, compiled in its folder: the worker, and the ceiling for memory."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

from .bare import Failed, end, tree, wait_until_gone

_HERE = Path(__file__).parent
_SECONDS = 600.0


def compiled(name: str, folder: Path) -> Path:
    """The static program `name`.c in a folder."""
    program = folder / name
    command = ["gcc", "-std=gnu17", "-O2", "-static", "-pthread", "-o", str(program)]
    try:
        subprocess.run([*command, str(_HERE / f"{name}.c")], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failed(f"cannot compile {name}.c: {error}; is there a gcc?") from error
    return program


def pages(huge: bool | None) -> str:
    """How the programs call the two sizes of pages; None: whatever the machine gives."""
    return "any" if huge is None else "huge" if huge else "small"


def memcpy_rate(program: Path, size: int, threads: int, huge: bool) -> float:
    """GiB/s of a parallel memcpy of `size` bytes into fresh memory."""
    command = [str(program), str(size), str(threads), pages(huge)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"cannot measure memcpy of {size} bytes: {done.stderr}")
    return float(done.stdout)


class Worker:
    """Processes with random memory, before a dump and after restores. It keeps its pid."""

    def __init__(
        self, program: Path, folder: Path, size: int, processes: int, huge: bool | None
    ) -> None:
        self._said = folder / "said"
        self._processes = processes
        command = [str(program), str(size), str(processes), pages(huge), "1"]
        with open(self._said, "ab") as said:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._pids = [self.pid]
        self._length = len("ready\n")

    def __enter__(self) -> Self:
        try:
            self._wait("ready", 1)
        except BaseException:
            self.end()
            raise
        self._pids = tree(self.pid)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def verify(self) -> None:
        """Have every process look at all of its memory; raises Failed if it is not right."""
        os.kill(self.pid, signal.SIGUSR1)
        self._wait("well", self._processes)

    def end(self) -> None:
        """End all of it; a stranger that has got its pid is left alone."""
        if self._is_ours():
            end(tree(self.pid))
        self._process.poll()
        # When a dump has ended them, they may still be about to go.
        wait_until_gone(self._pids)

    def forget(self) -> None:
        """Make its output what it was: CRIU restores an open file only if it has its old size."""
        os.truncate(self._said, self._length)

    def _is_ours(self) -> bool:
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return int(fields[1]) == os.getpid()

    def _wait(self, word: str, count: int) -> None:
        ends = time.monotonic() + _SECONDS
        while (said := self._said.read_text()).count(word) < count:
            if "BADLY" in said:
                raise Failed("the restored memory is not what it was")
            if not self._is_ours() or time.monotonic() > ends:
                raise Failed(f"the worker has not said {word!r}: {said}")
            time.sleep(0.005)
