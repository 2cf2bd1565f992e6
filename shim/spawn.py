"""Starting programs without fork: what the daemon, the engine and `delete` share.

`os.posix_spawn` is used because the daemon has threads (forking Python code from it would be
unsafe) and because importing `subprocess` costs each pod's shim a megabyte. Who waits for the
child is the caller's business: the daemon has a reaper, the others wait at once.
"""

from __future__ import annotations

import os

from shim.lean import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self


class Completed:
    """A finished program: its wait status and what it wrote to stdout and stderr together."""

    __slots__ = ("argv", "output", "status")

    def __init__(self, argv: Sequence[str], status: int, output: bytes) -> None:
        self.argv = argv
        self.status = status  # exit status; 128 + signal if killed
        self.output = output

    @property
    def text(self) -> str:
        """The output as text, bad bytes replaced."""
        return self.output.decode("utf-8", "replace").strip()


def exit_status(wait_status: int) -> int:
    """The exit status as containerd reports it: 128 + signal for a killed process."""
    if os.WIFSIGNALED(wait_status):
        return 128 + os.WTERMSIG(wait_status)
    return os.WEXITSTATUS(wait_status)


def find(program: str, path: str) -> str:
    """The absolute path of `program` looked up in `path`; FileNotFoundError names both."""
    if "/" in program:
        return program
    for folder in path.split(":"):
        candidate = f"{folder}/{program}"
        if folder and os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    raise FileNotFoundError(2, f"no such program in PATH ({path})", program)


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    fds: Mapping[int, int],
    *,
    group: bool = False,
    alone: bool = False,
) -> int:
    """Start `argv` and return its pid.

    `fds` maps the child's descriptor numbers to ours; whatever is not named is closed by
    close-on-exec, with `alone` even what is meant for other programs that we start, and 0, 1, 2
    default to /dev/null. With `group` the child leads a process group of its own. Raises
    FileNotFoundError if the program is not there.
    """
    program = find(argv[0], env.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))
    # Our numbers are lifted above every target first, so that no dup2 clobbers a later source.
    floor = max((*fds.keys(), 2)) + 1
    lifted = {child: _lift(ours, floor) for child, ours in fds.items()}
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_CLOSE, fd) for fd in (_inheritable() if alone else ())
    ]
    actions += [
        (os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0)
        for number in (0, 1, 2)
        if number not in fds
    ]
    actions += [(os.POSIX_SPAWN_DUP2, ours, child) for child, ours in lifted.items()]
    try:
        return os.posix_spawn(
            program,
            list(argv),
            dict(env),
            file_actions=actions,
            setsigdef=[signals.SIGPIPE, signals.SIGTERM, signals.SIGINT],
            setsigmask=[],
            setpgroup=0 if group else os.getpgrp(),
        )
    finally:
        for ours in lifted.values():
            os.close(ours)


def run(
    argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int] | None = None
) -> Completed:
    """Start `argv`, wait for it and return what it said. Not for the daemon: its reaper waits."""
    with Capture() as capture:
        pid = spawn(argv, env, fds if fds is not None else capture.fds)
        status = exit_status(os.waitpid(pid, 0)[1])
        return Completed(argv, status, capture.read())


class Capture:
    """A place for a program's output: memory, not a pipe, so nobody has to read along."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("output", os.MFD_CLOEXEC)
        self.fds = {1: self._fd, 2: self._fd}

    def read(self, limit: int = 1 << 20) -> bytes:
        """The last `limit` bytes written."""
        size = os.fstat(self._fd).st_size
        return os.pread(self._fd, limit, max(0, size - limit))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _inheritable() -> list[int]:
    """Our descriptors beyond the standard ones that a program would get from us."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:
            continue  # it was the one that lists them, or another thread's
    return found


def _lift(fd: int, floor: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor)
