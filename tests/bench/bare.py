"""CRIU without containerd or runc: dumps a process tree into a folder and restores it from one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

CACHED = Path(os.environ.get("THAW_CACHE", "/var/cache/thaw")) / "criu/criu"
_NEEDED = (4, 2)
_SECONDS = 600


class Failed(Exception):
    """CRIU did not do it; the message has the end of its log."""


class Criu:
    """One CRIU, by its path. Tasks that it restores become children of this process."""

    def __init__(self, program: Path) -> None:
        self.program = program
        words = subprocess.run(
            [str(program), "--version"], capture_output=True, text=True, check=False
        ).stdout.split()
        self.version = words[1] if len(words) > 1 else "?"
        numbers = [int(word) for word in self.version.split(".")[:2] if word.isdigit()]
        if tuple(numbers) < _NEEDED:
            raise Failed(f"{program} is CRIU {self.version}; 4.2 or later is needed: see --criu")

    def dump(self, pid: int, images: Path, options: Sequence[str] = ()) -> float:
        """Dump a tree, which ends with that; answers seconds."""
        command = ["dump", "--tree", str(pid), "--images-dir", str(images), "--work-dir"]
        return self._run([*command, str(images), *options], images / "dump.log")

    def restore(self, images: Path, work: Path, options: Sequence[str] = ()) -> float:
        """Restore a tree; answers seconds. Its first process has the pid that it had."""
        command = ["restore", "--images-dir", str(images), "--work-dir", str(work)]
        command += ["--restore-detached", "--restore-sibling", *options]
        return self._run(command, work / "restore.log")

    def _run(self, command: list[str], log: Path) -> float:
        verb, *rest = command
        head = [str(self.program), verb, "--log-file", log.name, "-v2"]
        began = time.monotonic()
        # Its own complaints are in its log; restored tasks must not hold a pipe of ours open.
        nothing = subprocess.DEVNULL
        process = subprocess.Popen([*head, *rest], stdin=nothing, stdout=nothing, stderr=nothing)
        try:
            code = process.wait(_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if code:
            raise Failed(f"criu {verb} failed with {code}; the end of {log}:\n{_tail(log)}")
        return time.monotonic() - began


def chosen_criu(given: str) -> Criu:
    """The CRIU that was asked for, else the tests' own, else the one in PATH."""
    program = given or (str(CACHED) if CACHED.exists() else shutil.which("criu"))
    if not program or not Path(program).exists():
        raise Failed(f"no CRIU at {program or CACHED} nor in PATH; name one with --criu")
    return Criu(Path(program))


def end(pids: Sequence[int], seconds: float = 60) -> None:
    """Kill processes and wait until their pids are free again."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_gone(pids, seconds)


def wait_until_gone(pids: Sequence[int], seconds: float = 60) -> None:
    """Wait until pids are free, to be restored; children of ours are reaped."""
    ends = time.monotonic() + seconds
    for pid in pids:
        while _there(pid):
            if time.monotonic() > ends:
                raise TimeoutError(f"process {pid} is still there after {seconds} s")
            time.sleep(0.005)


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    with suppress(OSError):  # it has ended meanwhile
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += tree(int(child))
    return found


def _there(pid: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return Path(f"/proc/{pid}").exists()


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError as error:
        return str(error)
    complaints = [line for line in lines if "Error" in line]
    return "\n".join((complaints or lines)[-12:])
