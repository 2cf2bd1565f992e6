"""A private registry: Debian's docker-registry on a port of its own, its storage in a folder."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bed import fetch

_CONFIG = """\
version: 0.1
log: {{level: info, formatter: text, fields: {{}}}}
storage:
  filesystem: {{rootdirectory: {storage}}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:0
  headers: {{X-Content-Type-Options: [nosniff]}}
"""
_LISTENS = re.compile(r"listening on (127\.0\.0\.1:\d+)")
_START_SECONDS = 60.0


class Registry(NamedTuple):
    """One that runs."""

    host: str  # HOST:PORT
    process: subprocess.Popen[bytes]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It answers nothing while the block lasts."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def running(folder: Path) -> Iterator[Registry]:
    """A registry with its files in `folder`, a new one, while the block lasts."""
    folder.mkdir(mode=0o700)
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(storage=folder / "storage"))
    log = folder / "log"
    with open(log, "wb") as out:
        command = [str(fetch.registry()), "serve", str(config)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield Registry(_wait_for(process, log), process)
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(process: subprocess.Popen[bytes], log: Path) -> str:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        found = _LISTENS.search(log.read_text())
        if found and _answers(found[1]):
            return found[1]
        time.sleep(0.02)
    raise RuntimeError(f"docker-registry did not start: {log.read_text()[-2000:]}")


def _answers(place: str) -> bool:
    connection = http.client.HTTPConnection(place, timeout=5)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
