"""The node's cache of GPU memory, for a while: its holder runs beside the lane, as systemd has it.

Nothing is in it but what `thaw warm` is asked to take, and what a restore has come upon.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen

from gpu.lane import GpuLane

_SECONDS = 60.0
_PAUSE = 0.1


@contextmanager
def holding(lane: GpuLane, gib: float) -> Iterator[Popen[bytes]]:
    """A block in which there is a cache of that size; the holder's process is the caller's."""
    command = [*_command(lane), "--config", str(lane.places.thaw_config)]
    lane.configure("cache.size", f"{gib:.3f}")
    holder = _started(lane, command)
    try:
        _wait(lane, holder)
        yield holder
    finally:
        holder.kill()
        holder.wait()
        lane.configure("cache.size", "0.0")
        _started(lane, command).wait()  # it ends at once, and the memory is given back


def _command(lane: GpuLane) -> list[str]:
    assert lane.installation is not None
    return [str(lane.installation.bin / "python"), "-I", "-m", "shim.cache.holder"]


def _started(lane: GpuLane, command: list[str]) -> Popen[bytes]:
    nothing = subprocess.DEVNULL
    return Popen(command, stdin=nothing, stdout=nothing, env=lane.environment(), cwd="/")


def _wait(lane: GpuLane, holder: Popen[bytes]) -> None:
    """Return when it answers."""
    ends = time.monotonic() + _SECONDS
    while lane.thaw("cache", check=False).returncode:
        if holder.poll() is not None:
            raise RuntimeError(f"the cache's holder ended with {holder.returncode}")
        if time.monotonic() > ends:
            raise TimeoutError(f"the cache's holder does not answer after {_SECONDS:g} s")
        time.sleep(_PAUSE)
