"""Where a process has the GPU memory library: a page that only says which descriptor is for us.

Whoever has it mapped may be lying, as everything else in a worker may; see library.py.
"""

from __future__ import annotations

import errno
import os

from shim.errors import GpuFailed
from shim.gpu.memory.wire import MARKER, NAME, Marker

_NAMES = (f"/memfd:{NAME} (deleted)", f"/memfd:{NAME}")
_OLD = "the container has the library of another version of Thaw: start it anew"


def find(pid: int) -> Marker | None:
    """The marker of a process; None if it has none, or has ended.

    Raises GpuFailed if there is one that is not ours to read.
    """
    try:
        data = _page(pid)
        if data is None:
            return None
        found = Marker.parse(data)
        own = _own_pid(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    except (OSError, ValueError) as error:
        raise GpuFailed(f"process {pid}: the GPU memory library: {error}", hint=_OLD) from error
    # A child that has got it in some way of its own is not who would answer.
    return found if found.pid == own else None


def _page(pid: int) -> bytes | None:
    """The marker as it is; None if there is none, or none any more. Raises OSError."""
    while (address := _address(pid)) is not None:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, MARKER.size, address)
        except OSError as error:  # a library that can speak for nothing any more takes it away
            if error.errno != errno.EIO or _address(pid) == address:
                raise
        finally:
            os.close(fd)
    return None


def _address(pid: int) -> int | None:
    """Where the marker is mapped; see proc_pid_maps(5)."""
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            if NAME in line:
                words = line.rstrip("\n").split(maxsplit=5)
                if len(words) == 6 and words[5] in _NAMES and int(words[2], 16) == 0:
                    return int(words[0].partition("-")[0], 16)
    return None


def _own_pid(pid: int) -> int:
    """What the process itself has for a pid."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return pid
