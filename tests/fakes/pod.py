"""The Task service of one pod, with the fake runc below it and no containerd above it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fakes.host import Node
from fakes.settled import PATIENCE
from shim.proto import runtimeoptions_pb
from shim.proto import task_pb as pb
from shim.proto.known import pack
from shim.reference import parse
from shim.task.container import Container
from shim.task.service import TaskService
from shim.ttrpc.server import Call, Deferred

FAKES = Path(__file__).parent
READ_GATE = 'read line < "$0"'  # sh -c READ_GATE GATE: runs until the test opens the gate


class Pod:
    """Requests in, as containerd sends them; `service` has the containers."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.folder = folder
        self.over = threading.Event()
        self.service = TaskService(node.host, self.over.set)
        self.settings: dict[str, str | float | bool] = {
            "BinaryName": str(FAKES / "runc.py"),
            "Root": str(folder / "runc"),
            "state": str(folder / "state"),
            "snapshots": str(folder / "snapshots"),
            "audit.log": str(folder / "audit.log"),
        }
        for name in ("runc", "runc/fail", "runc/gate", "state", "snapshots"):
            (folder / name).mkdir()

    def release(self) -> None:
        """Close the sockets of engines that nobody has asked anything."""
        for spare in self.node.host.engines._spare.values():
            spare.engine.release()
        for container in self.service.containers.values():
            if container.restoration is not None:
                container.restoration.close()

    def snapshot(self, name: str, id: str = "0123456789abcdef") -> Path:
        """Let the store have that name, and a folder that it leads to."""
        store = self.folder / "snapshots"
        made = store / "snapshots" / id
        made.mkdir(parents=True, exist_ok=True)
        (store / "names").mkdir(exist_ok=True)
        (store / "names" / parse(name).file_name).write_text(f"{id}\n")
        return made

    @property
    def events(self) -> Any:
        return self.node.events

    def call(self, seconds: float = 0) -> Call:
        return Call("containerd.task.v2.Task", "", int(seconds * 1e9))

    def options(self) -> Any:
        lines = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in self.settings.items()]
        return pack(runtimeoptions_pb.Options(config_body="\n".join(lines).encode()))

    def create(self, name: str, *args: str, **more: Any) -> Container:
        """Create a container whose init is `args`; `spec` is merged into its config.json."""
        path = make_bundle(self.folder / "bundles" / name, list(args), more.pop("spec", {}))
        request = pb.CreateTaskRequest(id=name, bundle=str(path), options=self.options(), **more)
        self.service.create(request, self.call())
        return self.service.containers[name]

    def start(self, name: str, exec_id: str = "", seconds: float = 0) -> int:
        request = pb.StartRequest(id=name, exec_id=exec_id)
        return self.service.start(request, self.call(seconds)).pid

    def start_behind(self, name: str, seconds: float = 0) -> Behind:
        """Start on another thread, as a request that takes long."""
        return Behind(lambda: self.start(name, "", seconds))

    def exec(self, name: str, exec_id: str, *args: str, **more: Any) -> None:
        spec = pack(pb.StartRequest())  # containerd's type URL is of no interest to a shim
        spec.value = json.dumps({"args": list(args)}).encode()
        request = pb.ExecProcessRequest(id=name, exec_id=exec_id, spec=spec, **more)
        self.service.exec(request, self.call())

    def kill(self, name: str, signal: int = 9, exec_id: str = "", everyone: bool = False) -> None:
        request = pb.KillRequest(id=name, exec_id=exec_id, signal=signal, all=everyone)
        self.service.kill(request, self.call())

    def delete(self, name: str, exec_id: str = "") -> pb.DeleteResponse:
        return self.service.delete(pb.DeleteRequest(id=name, exec_id=exec_id), self.call())

    def state(self, name: str, exec_id: str = "") -> pb.StateResponse:
        return self.service.state(pb.StateRequest(id=name, exec_id=exec_id), self.call())

    def wait(self, name: str, exec_id: str = "") -> Answer:
        request = pb.WaitRequest(id=name, exec_id=exec_id)
        return Answer(self.service.wait(request, self.call()))

    def fail(self, verb: str, text: str | None) -> None:
        """From now on runc fails at that verb; None ends it."""
        path = self.folder / "runc" / "fail" / verb
        path.write_text(text) if text is not None else path.unlink()

    def gate(self, verb: str) -> Path:
        """From now on runc waits there until `open_gate`."""
        path = self.folder / "runc" / "gate" / verb
        os.mkfifo(path)
        return path

    def calls(self) -> list[list[str]]:
        """What runc was called with, without its global options."""
        return [call[6:] for call in documents(self.folder / "runc" / "calls")]

    def verbs(self) -> list[str]:
        return [call[0] for call in self.calls()]


class Answer:
    """A Deferred, waited for."""

    def __init__(self, deferred: Deferred) -> None:
        self._came = threading.Event()
        self._outcome: Any = None
        deferred.subscribe(self._take)

    def _take(self, outcome: object) -> None:
        self._outcome = outcome
        self._came.set()

    @property
    def pending(self) -> bool:
        return not self._came.is_set()

    def get(self) -> Any:
        assert self._came.wait(PATIENCE)
        return self._outcome


class Behind:
    """A call on a thread of its own."""

    def __init__(self, fn: Callable[[], Any]) -> None:
        self._outcome: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(fn,))
        self._thread.start()

    def _run(self, fn: Callable[[], Any]) -> None:
        try:
            self._outcome.append((fn(), None))
        except BaseException as error:  # noqa: BLE001 - raised by `get`
            self._outcome.append((None, error))

    @property
    def done(self) -> bool:
        """Whether it has returned or raised."""
        return bool(self._outcome)

    def get(self) -> Any:
        """What it returned, or raises what it raised."""
        self._thread.join(PATIENCE)
        value, error = self._outcome[0]
        if error is not None:
            raise error
        return value


@contextmanager
def at_gate(path: Path) -> Iterator[None]:
    """Whoever is to wait at that FIFO is there; with the block's end it goes on, and all others."""
    with open(path, "w") as file:  # returns when it is open for reading
        yield
        path.unlink(missing_ok=True)  # first: who came after the end would wait for ever
        file.write("go\n")


def open_gate(path: Path) -> None:
    """Let whoever waits at that FIFO go on, and everyone after it."""
    with at_gate(path):
        pass


def documents(path: Path) -> list[Any]:
    """The JSON documents, one a line, of a file to which another process may just be writing."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def make_bundle(path: Path, args: list[str], spec: dict[str, Any]) -> Path:
    """A bundle as containerd leaves it."""
    (path / "rootfs").mkdir(parents=True)
    document: dict[str, Any] = {
        "process": {"args": args, "cwd": "/"},
        "annotations": {},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
    }
    (path / "config.json").write_text(json.dumps({**document, **spec}))
    return path
