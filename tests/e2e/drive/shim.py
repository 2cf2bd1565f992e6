"""One shim under test, as containerd would run it: `start`, calls over ttrpc, `delete`."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from bed import fetch

from shim.proto.known import Any, Empty, pack
from shim.proto.task_pb import ConnectRequest, ConnectResponse, DeleteResponse
from shim.proto.wire import Message
from shim.ttrpc.client import Client

M = TypeVar("M", bound=Message)
NAMESPACE = "driven"
SECONDS = 60.0


class Kind(NamedTuple):
    """A shim program, and how it is told where runc keeps its state."""

    name: str  # runc-1.6, runc-2.x, thaw
    program: Path

    @property
    def ours(self) -> bool:
        """Whether it is the product."""
        return self.name == "thaw"


class Shim:
    """A running shim. `folder` is the place of everything that belongs to it."""

    def __init__(self, kind: Kind, folder: Path, options: Message | None) -> None:
        self.kind = kind
        self.folder = folder
        self.options: Any | None = pack(options) if options is not None else None
        self.address = ""
        self.service = "containerd.task.v2.Task"
        self._client: Client | None = None
        self._connecting = threading.Lock()  # two threads that start must not both connect

    def flags(self, container: str) -> list[str]:
        """The flags that containerd gives to `start` and `delete`."""
        return [
            *("-namespace", NAMESPACE),
            *("-address", f"{self.folder}/c.sock"),
            *("-publish-binary", "/bin/false"),
            *("-id", container),
        ]

    def run(
        self,
        bundle: Path,
        words: Sequence[str],
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the program in `bundle` as containerd does."""
        environment = {**self.environment(), **(env or {})}
        return subprocess.run(
            [self.kind.program, *words],
            cwd=bundle,
            input=stdin,
            capture_output=True,
            env=environment,
            timeout=SECONDS,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        """The environment of a shim: runc and CRIU in PATH, and where containerd listens."""
        tools = f"{fetch.runc().parent}:{fetch.criu().parent}"
        return {
            "PATH": f"{tools}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TTRPC_ADDRESS": f"{self.folder}/c.sock.ttrpc",
            "GRPC_ADDRESS": f"{self.folder}/c.sock",
            "NAMESPACE": NAMESPACE,
            "MAX_SHIM_VERSION": "2",
            "GOMAXPROCS": "2",
        }

    def start(self, bundle: Path, container: str, *more: str) -> str:
        """`start`: a new shim, or the address of the one that the container's group has."""
        stdin = self.options.encode() if self.options is not None else b""
        done = self.run(bundle, [*self.flags(container), *more, "start"], stdin)
        if done.returncode or done.stderr:
            raise RuntimeError(f"start: {done.returncode} {done.stdout!r} {done.stderr!r}")
        text = done.stdout.decode().strip()
        version = 2
        if text.startswith("{"):
            answer = json.loads(text)
            text, version = answer["address"], answer["version"]
        self.service = f"containerd.task.v{version}.Task"
        with self._connecting:
            if self._client is None:
                self.address = text
                self._client = Client(text)
        return text

    def call(self, method: str, request: Message, response: type[M], seconds: float = SECONDS) -> M:
        """One call of the Task service; raises the ThawError of its status."""
        assert self._client is not None
        return self._client.call(self.service, method, request, response, seconds)

    def call_other(self, service: str, method: str) -> None:
        """A call of some other service or method."""
        assert self._client is not None
        self._client.call(service, method, Empty(), Empty, SECONDS)

    @property
    def pid(self) -> int:
        """The shim's own pid."""
        return self.call("Connect", ConnectRequest(id="nobody"), ConnectResponse).shim_pid

    def delete(self, bundle: Path, container: str, cwd: Path | None = None) -> DeleteResponse:
        """`delete`, as containerd runs it after every task."""
        words = [*self.flags(container), "-bundle", str(bundle), "delete"]
        done = self.run(cwd or bundle, words)
        if done.returncode:
            raise RuntimeError(f"delete: {done.returncode} {done.stderr!r}")
        return DeleteResponse.decode(done.stdout)

    def forget(self) -> None:
        """The shim is gone; the next `start` makes another."""
        self.close()
        self._client, self.address = None, ""

    def close(self) -> None:
        """Close the connection, as containerd does after Shutdown."""
        if self._client is not None:
            self._client.close()


def gone(pid: int, seconds: float = SECONDS) -> bool:
    """Wait until a process that is not our child has ended; False if it did not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with open(fd, "rb", buffering=0):
        return _readable(fd, seconds)


def _readable(fd: int, seconds: float) -> bool:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def await_true(condition: object, seconds: float = SECONDS) -> bool:
    """Wait until `condition()` holds, for what has no event; False if it never did."""
    assert callable(condition)
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True
