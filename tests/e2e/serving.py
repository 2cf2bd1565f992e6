"""What the tests of the worker's contract share: workers that speak it or serve, and who asks them.

The registry that listens (Recorder) and etcd are on the lane's side of the bridge, where a real one
would be: pods reach them through their own network.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
import pytest
from bed.images import BUSYBOX_IMAGE, HOST_IMAGE
from bed.lane import Lane
from bed.model import EXAMPLE
from bed.pod import Container, Mount, Pod
from workers import PYTHON, USR, Line, outcome, task_state

PREFIX = "thaw.dev/"
PORT = 8000

# Says who it is whenever it is told something, for as long as it lives.
SPEAKING = """\
token=$(cat /proc/sys/kernel/random/uuid)
folder=$SNAPSHOT_CONTROL_DIR
exec 3<>$folder/wake
tell() { echo "$1 $token $(cat $folder/identity.json)"; }
tell booted
while :; do
    touch $folder/ready-for-snapshot
    read -r event <&3
    rm -f $folder/ready-for-snapshot
    tell $event
done
"""
# A server of few words: what it does depends on the path. Its token tells boots apart.
SERVER = """\
import os, socket, time
token = os.urandom(8).hex()
listener = socket.create_server(("", 8000))
kept = []
print("booted", flush=True)
while True:
    made, _ = listener.accept()
    kept.append(made)
    path = made.recv(4096).split()[1].decode()
    if path == "/crash":
        print("crashing", flush=True)
        os._exit(9)
    if path == "/talk":
        print("word " * 50_000, flush=True)
    if path == "/hang":
        continue
    body = {"/answer": "it is 42", "/token": token, "/talk": "done"}.get(path, "no")
    status = 500 if body == "no" else 200
    head = f"HTTP/1.0 {status} OK\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    made.sendall(head.encode() + body.encode())
    kept.remove(made)
    made.close()
"""


def annotated(**words: str) -> dict[str, str]:
    """Annotations of ours: `on_failure="fail"` is thaw.dev/on-failure: fail."""
    return {PREFIX + key.replace("_", "-"): value for key, value in words.items()}


# -- workers --------------------------------------------------------------------------------------


class Said(NamedTuple):
    """What a worker that speaks has said: the event, its token, who it is."""

    event: str
    token: str
    identity: Mapping[str, Any]


def speaking(pod: Pod, notes: Mapping[str, str], **more: Any) -> Container:
    """Create a worker that speaks the contract."""
    args = ["sh", "-c", SPEAKING]
    return pod.container("app", BUSYBOX_IMAGE, args, annotations=notes, **more)


def all_said(container: Container) -> list[Said]:
    """Everything that a speaking worker has said."""
    heads = (line.split(" ", 2) for line in container.log().splitlines())
    return [Said(event, token, json.loads(text)) for event, token, text in heads]


def said(container: Container, event: str) -> Said:
    """What a speaking worker says last, once that event has come."""
    container.wait_for_log(f"{event} ")
    found = all_said(container)[-1]
    assert found.event == event
    return found


def identity_of(lane: Lane, container: Container) -> dict[str, Any]:
    """What identity.json says in the control directory that the shim has made."""
    text = (control(lane, container) / "identity.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def control(lane: Lane, container: Container) -> Path:
    """The control directory that the shim has made for a container."""
    return task_state(lane, container.id) / "control"


def example(pod: Pod, program: str, *arguments: str, notes: Mapping[str, str]) -> Container:
    """Create a container that runs a program of the examples, as it is, in the host's Python."""
    args = [PYTHON, "-ISu", f"/app/{program}", *arguments]
    mounts = [USR, Mount(EXAMPLE, "/app")]
    return pod.container("app", HOST_IMAGE, args, mounts=mounts, annotations=notes)


def get(pod: Pod, path: str) -> tuple[int, str]:
    """The status and the body that a pod's server answers, from outside."""
    return _asked(pod, "GET", path, None)


def post(pod: Pod, path: str, body: str) -> tuple[int, str]:
    """The same with a body."""
    return _asked(pod, "POST", path, body)


def _asked(pod: Pod, method: str, path: str, body: str | None) -> tuple[int, str]:
    connection = HTTPConnection(pod.ip, PORT, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def refused(container: Container) -> str:
    """Start a container that cannot be: what whoever starts it is told."""
    with pytest.raises(grpc.RpcError) as refusal:
        container.start()
    return str(refusal.value.details())


def became(lane: Lane, container: Container, message: str, reason: str, words: str) -> Line:
    """The line about a restore that came to nothing, which says why; the audit log knows of it.

    What a worker has answered is in the shim's log only.
    """
    line = outcome(lane, container)
    assert (line.message, line.fields["reason"]) == (message, reason), line
    assert words in line.fields["error"]
    [noted] = audited(lane, container)
    assert noted["reason"] == reason
    assert (words in noted["error"]) == (reason not in ("CanaryFailed", "WorkerFailed"))
    assert noted["outcome"] == ("cold boot" if message == "booting cold" else "failed")
    return line


def audited(lane: Lane, container: Container) -> list[dict[str, str]]:
    """What the audit log says of a container."""
    lines = map(json.loads, lane.places.audit.read_text().splitlines())
    return [line for line in lines if line.get("container") == container.id]


# -- the other side of the bridge -----------------------------------------------------------------


def gateway(pod: Pod) -> str:
    """The lane's own address on the bridge, where pods reach it."""
    return f"{pod.ip.rpartition('.')[0]}.1"


def ips(pod: Pod) -> list[str]:
    """All addresses of a pod."""
    return [address for address in (pod.ip, pod.ip6) if address]


class Request(NamedTuple):
    """What somebody has asked of a Recorder."""

    method: str
    path: str
    body: str


Answer = Callable[[Request], int]


class Recorder:
    """An HTTP server that keeps what it is asked, in order, and answers with a status.

    `answer` is called before the request counts as asked: whoever comes meanwhile was first.
    """

    def __init__(self, answer: Answer = lambda _: 200) -> None:
        self.requests: list[Request] = []
        self.answer = answer
        handler = type("Bound", (_Handler,), {"recorder": self})
        self._server = ThreadingHTTPServer(("0.0.0.0", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def port(self) -> int:
        """Where it listens, on all addresses."""
        return int(self._server.server_address[1])

    def methods(self) -> list[str]:
        """What was done, without what was said."""
        return [request.method for request in self.requests]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    recorder: Recorder

    def do_GET(self) -> None:
        """Any request."""
        length = int(self.headers.get("Content-Length") or 0)
        request = Request(self.command, self.path, self.rfile.read(length).decode())
        status = self.recorder.answer(request)
        self.recorder.requests.append(request)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        """Any request."""
        self.do_GET()

    def do_DELETE(self) -> None:
        """Any request."""
        self.do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""
