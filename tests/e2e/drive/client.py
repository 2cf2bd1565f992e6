"""`ctr` with streams of its own: piped, on a terminal, in the background."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from bed import fetch
from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane


def command(lane: Lane, *words: str, namespace: str = "") -> list[str]:
    """The command line of a lane's `ctr`."""
    program = str(fetch.containerd(lane.version) / "ctr")
    return [program, "-a", str(lane.places.socket), "-n", namespace or lane.name, *words]


def run_words(lane: Lane, name: str, *args: str, more: tuple[str, ...] = ()) -> list[str]:
    """`ctr run` of a busybox container with the handler `thaw`."""
    return ["run", *more, *lane.runtime_arguments(), BUSYBOX_IMAGE, name, *args]


def begun(lane: Lane, *words: str, namespace: str = "", **streams: Any) -> subprocess.Popen[bytes]:
    """A `ctr` that runs beside the test."""
    return subprocess.Popen(
        command(lane, *words, namespace=namespace), env=lane.environment(), **streams
    )


def piped(lane: Lane, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A whole `ctr` with bytes in and out."""
    return subprocess.run(
        command(lane, *words),
        input=stdin,
        capture_output=True,
        env=lane.environment(),
        timeout=100,
        check=False,
    )


class Terminal:
    """A `ctr` whose streams are a terminal of `columns` x `rows`."""

    def __init__(self, lane: Lane, *words: str, columns: int = 93, rows: int = 31) -> None:
        import fcntl
        import struct
        import termios

        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._process = begun(lane, *words, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self._seen = b""

    def type(self, text: bytes) -> None:
        """Press keys."""
        os.write(self._master, text)

    def wait_for(self, text: bytes) -> bytes:
        """Read until `text` appears; everything so far."""
        while text not in self._seen:
            self._seen += self._read()
        return self._seen

    def end(self) -> tuple[int, bytes]:
        """Read to the end; `ctr`'s exit status and everything it showed."""
        try:
            while True:
                self._seen += self._read()
        except EOFError:
            pass
        os.close(self._master)
        return self._process.wait(60), self._seen

    def _read(self) -> bytes:
        try:
            data = os.read(self._master, 4096)
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if not data:
            raise EOFError(self._seen)
        return data


@contextmanager
def followed_events(lane: Lane, namespace: str = "") -> Iterator[IO[bytes]]:
    """What `ctr events` writes, from before the block on."""
    process = begun(lane, "events", namespace=namespace, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        # It says nothing when it has subscribed: make events until one comes through.
        os.set_blocking(process.stdout.fileno(), False)
        probe = f"probe-{os.getpid()}"
        while not process.stdout.read():
            lane.ctr("namespaces", "create", probe)
            lane.ctr("namespaces", "remove", probe)
        os.set_blocking(process.stdout.fileno(), True)
        yield process.stdout
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def topics_until(events: IO[bytes], container: str, last: str) -> list[str]:
    """The task topics of a container, in the order in which they came, up to `last`."""
    found: list[str] = []
    for line in events:
        words = line.decode().split()
        topic = next((word for word in words if word.startswith("/tasks/")), "")
        if topic and f'"container_id":"{container}"' in line.decode().replace(" ", ""):
            found.append(topic.removeprefix("/tasks/"))
            if found[-1] == last:
                return found
    raise EOFError(f"no {last} of {container} after {found}")
