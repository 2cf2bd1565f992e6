"""The network hook as a process: started early, told of the container later, killed when it hangs.

Any program under the OCI hook contract will do: the container's state on stdin, exit status 0 if
all is well, the reason on stderr otherwise. Ours says in a line of JSON on stdout that all is done,
and then only repeats announcements; nobody waits for that.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from shim.bundle import Bundle, annotations_of
from shim.config import Config
from shim.errors import RestoreFailed

_VERSION = "1.0.2"  # of the OCI runtime specification
_LARGEST = 1 << 20  # bytes that it may say
_CHUNK = 65536
_EXCERPT = 500  # characters of what it said
_PUT_AWAY = 1.0  # seconds


class Hook:
    """One run of the program that `network.hook` names; without a name there is nothing to run."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._program = ""

    def start(self, config: Config) -> None:
        """Start it, unless it is started; that there is no such program, `run` will say."""
        program = program_of(config)
        if not program or self._program:
            return
        self._program = program
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen([self._program], stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            self._error = error

    def run(self, container: str, pid: int, bundle: Bundle, seconds: float) -> None:
        """Hand it the container's state and wait until all is done.

        Raises RestoreFailed if it cannot be run, says no, or takes longer: it is killed then.
        """
        if self._error is not None:
            raise RestoreFailed(
                f"cannot run the network hook {self._program}: {self._error.strerror}",
                hint="see network.hook in the configuration",
            )
        if self._process is None:
            return
        state = {
            "ociVersion": _VERSION,
            "id": container,
            "status": "running",
            "pid": pid,
            "bundle": bundle.path,
            "annotations": annotations_of(bundle.spec()),
        }
        self._talk(self._process, json.dumps(state).encode(), seconds)

    def close(self) -> None:
        """Let it end by itself, or make it end."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_PUT_AWAY)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()

    def _talk(self, process: subprocess.Popen[bytes], state: bytes, seconds: float) -> None:
        """Write the state, and read what it says, until it is done or its time is over."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        ends = time.monotonic() + seconds
        into, out, error = (f.fileno() for f in (process.stdin, process.stdout, process.stderr))
        os.set_blocking(into, False)  # it may have more in its annotations than a pipe takes
        said = {out: b"", error: b""}
        poll = select.poll()
        poll.register(into, select.POLLOUT)
        for fd in said:
            poll.register(fd, select.POLLIN)
        open_ones = set(said)
        while open_ones:
            left = ends - time.monotonic()
            ready = dict(poll.poll(left * 1000)) if left > 0 else {}
            if not ready:
                raise self._hangs(process, seconds, said[error])
            if into in ready:
                state = _write(into, state)
                if not state:
                    poll.unregister(into)
                    process.stdin.close()
            for fd in said.keys() & ready.keys():
                data = os.read(fd, _CHUNK)
                said[fd] = (said[fd] + data)[-_LARGEST:]
                if not data:
                    poll.unregister(fd)
                    open_ones.discard(fd)
            if self._is_done(said[out]):
                return
        self._check_status(process, ends, seconds, said[error])

    def _is_done(self, said: bytes) -> bool:
        """Whether it has made its report."""
        line, newline, _ = said.partition(b"\n")
        if not newline or not line.startswith(b"{"):
            return False
        try:
            report: dict[str, Any] = json.loads(line)
            self.warnings += [str(text)[:_EXCERPT] for text in report["warnings"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return False  # another's, which says what it likes
        return True

    def _check_status(
        self, process: subprocess.Popen[bytes], ends: float, seconds: float, said: bytes
    ) -> None:
        try:
            status = process.wait(max(ends - time.monotonic(), 0.001))
        except subprocess.TimeoutExpired:
            raise self._hangs(process, seconds, said) from None
        if status:
            raise RestoreFailed(
                f"the network hook {self._program} ended with {_status(status)}: {_text(said)}",
                hint="see network.hook in the configuration",
            )

    def _hangs(
        self, process: subprocess.Popen[bytes], seconds: float, said: bytes
    ) -> RestoreFailed:
        process.kill()
        text = f": {_text(said)}" if said.strip() else ""
        return RestoreFailed(
            f"the network hook {self._program} was not done after {seconds:g} s, killed{text}",
            hint="see network.timeout in the configuration",
        )


def _write(fd: int, data: bytes) -> bytes:
    """What is left to be written; nothing once nobody reads it."""
    try:
        return data[os.write(fd, data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:  # it has ended, or wants no more; why, it may say
        return b""


def program_of(config: Config) -> str:
    """The path that `network.hook` means; empty if there shall be none."""
    program = config.text("network.hook")
    if program and "/" not in program:
        return f"{os.path.dirname(sys.executable)}/{program}"
    return program


def _status(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def _text(said: bytes) -> str:
    return " ".join(said.decode("utf-8", "replace").split())[:_EXCERPT]
