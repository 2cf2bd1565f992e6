"""Which process of this machine is which of a container's: pids inside and outside.

CRIU's images know processes by their pid in the container's own pid namespace; the system calls
that read and write their memory want ours.
"""

from __future__ import annotations

import os


def processes_below(init: int) -> dict[int, int]:
    """Pid inside → pid outside for `init` (a pid outside) and all its descendants.

    Inside means the pid namespace of `init`. A process that ends meanwhile is left out.
    """
    depth = len(_pids(init)) - 1
    found: dict[int, int] = {}
    todo = [init]
    while todo:
        pid = todo.pop()
        numbers = _pids(pid)
        if 0 <= depth < len(numbers):
            found[numbers[depth]] = pid
        todo += _children(pid)
    return found


def _pids(pid: int) -> list[int]:
    """The pids of a process, from our namespace (or that of /proc) down to its own."""
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("NSpid:"):
                    return [int(word) for word in line.split()[1:]]
    except OSError:
        pass
    return []


def _children(pid: int) -> list[int]:
    """The children of all its threads: a child belongs to the thread that forked it."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += [int(word) for word in file.read().split()]
        except OSError:
            continue
    return found
