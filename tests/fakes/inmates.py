"""Processes in the place of a container's init: in a pod's network, otherwise as we are."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_SLEEP = ("sleep", "1000")


@contextmanager
def inmate(namespace: str, program: Sequence[str] = _SLEEP) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the network namespace at a path; it is ended with the block."""
    argv = ["nsenter", f"--net={namespace}", *program]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as process:
        try:
            _joined(process.pid, namespace)
            yield process
        finally:
            process.kill()


def _joined(pid: int, namespace: str) -> None:
    wanted = Path(namespace).stat().st_ino
    while Path(f"/proc/{pid}/ns/net").stat().st_ino != wanted:
        pass  # nsenter has still to start
