"""How far a checkpoint or a restore has got with a process, as anyone on the machine can see it.

The driver is not asked: that would be one more who talks to the process. Nor is the GPU memory
library in it, whose marker says all that is wanted here.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from bed.leaks import command_line, processes

from shim.errors import GpuFailed
from shim.gpu.memory import marker

HELD, EMPTIED = 1, 2  # of native/gpu/wire.h
_ENGINE = "shim/engine.py"
_PAUSE = 0.002
_SECONDS = 120.0
_SHARE = 4  # of the device memory that is to be on its way: one part in so many


def init_of(container: str) -> int:
    """Our pid of the container's first process, while it is there; else 0."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            if container not in (folder / "cgroup").read_text():
                continue
            own = re.search(r"^NSpid:.*\s(\d+)$", (folder / "status").read_text(), re.MULTILINE)
            if own is not None and own[1] == "1":
                return int(folder.name)
    return 0


def resident(pid: int) -> int:
    """Bytes of memory that it has; 0 if it is gone."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def on_gpu(pid: int) -> bool:
    """Whether it has a device node of NVIDIA's open."""
    found = []
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found.append(os.readlink(entry.path).startswith("/dev/nvidia"))
    return any(found)


def traced(pid: int) -> bool:
    """Whether somebody holds it: CRIU, while it dumps or restores it."""
    with suppress(OSError):
        held = re.search(
            r"^TracerPid:\s(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
        )
        return held is not None and held[1] != "0"
    return False


def moved(pid: int) -> int:
    """What the marker of the library in it says: HELD, EMPTIED, or 0, also if there is none."""
    with suppress(GpuFailed, OSError):
        found = marker.find(pid)
        return found.state if found is not None else 0
    return 0


def engine(folder: Path, word: str = _ENGINE) -> int:
    """The pid of a lane's engine, the one that was started last; 0 if there is none.

    `folder` is the lane's; `word` is what stands in an engine's command line.
    """
    found = {pid: _started(pid) for pid in processes(folder) if word in command_line(pid)}
    return max((pid for pid in found if found[pid]), key=lambda pid: (found[pid], pid), default=0)


def _started(pid: int) -> int:
    """When, in clock ticks since the boot; 0 if it has ended. See proc_pid_stat(5)."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) if fields[0] not in "ZX" else 0
    return 0


def gpu_memory() -> int:
    """Bytes of the first GPU that are free."""
    from shim.gpu.nvml import gpus

    return gpus()[0].free


def settled(wanted: int, seconds: float) -> int:
    """Bytes that are free, once it is as much as wanted, or after so long."""
    ends = time.monotonic() + seconds
    while (free := gpu_memory()) < wanted and time.monotonic() < ends:
        time.sleep(0.1)
    return free


class Killer:
    """Kills one process once a condition holds, in a thread; for a block."""

    def __init__(self, condition: Callable[[], int]) -> None:
        """`condition` answers the pid when it is time, and 0 before."""
        self.killed = 0
        self._condition = condition
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        ends = time.monotonic() + _SECONDS
        while time.monotonic() < ends and not self._over.wait(_PAUSE):
            pid = self._condition()
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed = pid
                return


def being_checkpointed(pid: int, size: int) -> Callable[[], int]:
    """Its device memory, `size` bytes, is on its way into its own."""
    before = resident(pid)
    return lambda: pid if resident(pid) > before + size // _SHARE else 0


def being_dumped(pid: int, *, gpu: bool) -> Callable[[], int]:
    """It has left the GPU, and CRIU has begun."""
    return lambda: pid if traced(pid) and not (gpu and on_gpu(pid)) else 0


def being_restored(container: str, size: int, *, gpu: bool) -> Callable[[], int]:
    """It is on its way back to the GPU."""

    def condition() -> int:
        pid = init_of(container)
        if gpu:
            return pid if pid and on_gpu(pid) else 0
        return pid if pid and resident(pid) > size // _SHARE else 0

    return condition


def emptied(stage: str, pid: int) -> Callable[[], bool]:
    """Whether a worker whose memory is moved has come to a stage of its dump: moved_faults.py."""
    dumped = False

    def reached() -> bool:
        nonlocal dumped
        held = traced(pid)
        dumped = dumped or held
        state = moved(pid)
        if stage == "held":
            return state in (HELD, EMPTIED)
        if stage == "emptied":
            return state == EMPTIED
        if stage == "dumped":
            return state == EMPTIED and held
        return dumped and not held  # and it is about to get it back, if it has not

    return reached


def refilled(stage: str, free: int, size: int) -> Callable[[int], bool]:
    """Whether a restore has come to a stage; the worker's pid, once there is one, is told.

    `free`: bytes of the GPU that were free before, of which it takes `size`.
    """

    def reached(pid: int) -> bool:
        if stage == "filling":
            return not (pid and on_gpu(pid)) and free - gpu_memory() > size // _SHARE
        if stage == "restoring":
            return bool(pid) and traced(pid)
        return bool(pid) and not traced(pid) and moved(pid) == EMPTIED and on_gpu(pid)

    return reached


def restored(container: str, size: int, *, gpu: bool) -> Callable[[], int]:
    """Its device memory has left its own memory again: the unlock is next."""
    most = 0

    def condition() -> int:
        nonlocal most
        pid = init_of(container)
        now = resident(pid) if pid else 0
        most = max(most, now)
        if not gpu:
            return pid if most > size // 2 and not traced(pid) else 0
        return pid if most > size // 2 and now < most - size else 0

    return condition
