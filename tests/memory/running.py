"""A zoo on this machine, without a container: started, told to speak, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.bare import end, tree, wait_until_gone
from memory import zoo

TMPFS = Path("/dev/shm")
_SECONDS = 60.0


class Zoo:
    """A running zoo. It keeps its pid when it is restored."""

    def __init__(self, folder: Path, tmpfs: Path) -> None:
        self._folders = (folder, tmpfs)
        self._log = folder / "said"
        with open(self._log, "ab") as said:
            self._process = subprocess.Popen(
                [str(zoo.program()), "7", str(tmpfs), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                env=zoo.ENVIRONMENT,
            )
        self.pid = self._process.pid
        self._pids = [self.pid]

    @property
    def log(self) -> str:
        """All the lines that it has said."""
        text = self._log.read_text()
        return text[: text.rfind("\n") + 1]

    def boot(self) -> None:
        """Wait until all of its memory is there."""
        self._wait_for("booted", 1)
        self._pids = tree(self.pid)

    def verify(self) -> list[str]:
        """Have it look at all of its memory; what is wrong."""
        self._ask(signal.SIGUSR1, "verified ")
        return zoo.complaints(self.log)

    def go_on(self) -> str:
        """Have every process count on in every region; the line it says then."""
        self._ask(signal.SIGUSR2, "went on ")
        return zoo.last(self.log, "went on ")

    def files(self) -> dict[Path, bytes]:
        """What its files hold now, which no dump has: its log, and those that are mapped."""
        paths = [path for folder in self._folders for path in folder.glob("zoo-*")]
        return {path: path.read_bytes() for path in (self._log, *paths)}

    def end(self) -> None:
        """Kill all of it, if it is there."""
        end(tree(self.pid))
        self._process.poll()  # a restored one has been waited for by its pid
        wait_until_gone(self._pids)  # those that a dump has ended may still be about to go

    def _wait_for(self, word: str, count: int) -> None:
        ends = time.monotonic() + _SECONDS
        while self.log.count(word) < count:
            if time.monotonic() > ends:
                raise TimeoutError(f"the zoo has not said {word!r}: {self.log[-2000:]}")
            time.sleep(0.01)

    def _ask(self, how: signal.Signals, word: str) -> None:
        count = self.log.count(word)
        os.kill(self.pid, how)
        self._wait_for(word, count + 1)


@contextmanager
def running(folder: Path) -> Iterator[Zoo]:
    """A zoo that has booted; all of it is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="zoo-", dir=TMPFS) as tmpfs:
        zoo = Zoo(folder, Path(tmpfs))
        try:
            zoo.boot()
            yield zoo
        finally:
            zoo.end()
