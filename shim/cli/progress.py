"""How far a verb has come: a bar on a terminal, else a line now and then; nothing with --quiet."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from shim.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

BETWEEN = 5.0  # seconds between two lines, where there is no terminal


class Progress:
    """Bytes done of a total. Calling it adds to them; any thread may.

    with Progress(args, "verify", total) as progress:
        seal(snapshot, progress=progress)
    """

    def __init__(self, args: argparse.Namespace, what: str, total: int = 0) -> None:
        self.done = 0
        self.total = total
        self.began = time.monotonic()
        self._what = output.plain(what)
        self._quiet = bool(args.quiet)
        self._lock = threading.Lock()
        self._said = self.began
        self._bar: Bar | None = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(self._what, total=self.total or None, figures="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, count: int) -> None:
        """So many bytes more are done; fewer than 0 if some have to be done again."""
        with self._lock:
            self.done += count
            self._show()

    def expect(self, count: int) -> None:
        """There are so many bytes more to do than was known."""
        with self._lock:
            self.total += count

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    @property
    def figures(self) -> str:
        """What is done, of what, and how fast."""
        done, speed = output.size(self.done), output.rate(self.done, self.seconds)
        return f"{done} of {output.size(self.total)}, {speed}" if self.total else f"{done}, {speed}"

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=self.done,
                total=self.total or None,
                figures=self.figures,
            )
            return
        now = time.monotonic()
        if self._quiet or now - self._said < BETWEEN:
            return
        self._said = now
        print(f"{self._what}: {self.figures}", file=sys.stderr, flush=True)


def _bar() -> Bar:
    # Loaded only where it is seen: it takes 50 ms.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
