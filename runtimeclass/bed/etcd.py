"""A private etcd, Debian's, which can be killed, frozen and started again on the same port."""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bed import fetch

_START_SECONDS = 60.0


class Server:
    """An etcd with its data in `folder`; `address` has one port for clients, one for peers.

    `launcher` are words before the program's, such as those that enter a namespace.
    """

    def __init__(
        self,
        folder: Path,
        address: str = "127.0.0.1",
        launcher: Sequence[str] = (),
        ports: tuple[int, int] | None = None,
    ) -> None:
        self._folder = folder
        self._address = address
        self._launcher = launcher
        self.port, self._peers = ports or _free(address)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers if it can be reached from here."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        clients, peers = (f"http://{host}:{port}" for port in (self.port, self._peers))
        words = [
            *("--data-dir", str(self._folder / "data"), "--name", "one", "--log-level", "error"),
            *("--listen-client-urls", clients, "--advertise-client-urls", clients),
            *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
            *("--initial-cluster", f"one={peers}"),
        ]
        with open(self._folder / "log", "ab") as log:
            argv = [*self._launcher, str(fetch.etcd()), *words]
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if not self._launcher:
            self._wait()

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None

    def freeze(self) -> None:
        """Let it answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Remove its data; it must not run."""
        shutil.rmtree(self._folder / "data")

    def read(self, key: str) -> str | None:
        """The value of a key, through etcd's JSON gateway."""
        found = self._ask("/v3/kv/range", {"key": base64.b64encode(key.encode()).decode()})
        values = found.get("kvs") or []
        return base64.b64decode(values[0]["value"]).decode() if values else None

    def leases(self) -> list[str]:
        """The ids of all leases."""
        return [lease["ID"] for lease in self._ask("/v3/lease/leases", {}).get("leases") or []]

    def _ask(self, path: str, request: dict[str, str]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._address, self.port, timeout=60)
        try:
            connection.request("POST", path, json.dumps(request))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def _wait(self) -> None:
        ends = time.monotonic() + _START_SECONDS
        while time.monotonic() < ends and self._process and self._process.poll() is None:
            try:
                if "header" in self._ask("/v3/kv/range", {"key": "YQ=="}):
                    return
            except (OSError, http.client.HTTPException, ValueError):
                pass
            time.sleep(0.02)
        raise RuntimeError(f"etcd did not start: {(self._folder / 'log').read_text()[-2000:]}")


def _free(address: str) -> tuple[int, int]:
    """Two ports below those that the kernel gives to connections: none of these may take them."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found: list[int] = []
    while len(found) < 2:
        port = 10_000 + secrets.randbelow(20_000)
        try:
            socket.create_server((address, port), family=family).close()
        except OSError:
            continue  # somebody has it
        if port not in found:
            found.append(port)
    return found[0], found[1]
