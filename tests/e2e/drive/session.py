"""A script of calls to one shim, and a tale of what came of each.

Two shims' tales of one script are compared line by line, so whatever differs between two runs of
the same shim (pids, times, folders) is told as "some" or left out.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from bed import fetch
from bed.dismantle import BRIDGE, OWNER, PREFIX, dismantle
from bed.leaks import holdings, process_identity

from drive.bundle import Bundle, Output, make_root, overlay, process
from drive.shim import Kind, Shim, await_true, gone
from drive.sink import Sink
from shim.errors import ThawError
from shim.proto import known, runc_pb, runtimeoptions_pb
from shim.proto import task_pb as pb
from shim.proto.known import Empty
from shim.proto.wire import Message

GROUP = "io.containerd.runc.v2.group"
STATUS = ("unknown", "created", "running", "stopped", "paused", "pausing")
KILL, TERM = 9, 15


class Session:
    """A shim for one group of containers, with everything around it in one folder."""

    def __init__(self, kind: Kind, folder: Path, lower: Path, sink: Sink) -> None:
        self.kind = kind
        self.folder = folder
        self.sink = sink
        self.shim = Shim(kind, folder, self.options())
        self.tale: dict[str, str] = {}
        self.bundles: dict[str, Bundle] = {}
        self.outputs: dict[str, Output] = {}
        self.lower = lower
        self._layers = count(1)  # `create` may be called by several threads
        self._threads = ThreadPoolExecutor(32)

    def options(self, **more: Any) -> Message:
        """The runtime options, in the message that containerd would send to this shim."""
        if not self.kind.ours:
            runc = {"binary_name": str(fetch.runc()), "root": f"{self.folder}/runc"}
            return runc_pb.Options(**{**runc, **more})
        lines = {
            "state": f"{self.folder}/thaw",
            "snapshots": f"{self.folder}/snapshots",
            "criu": str(fetch.criu()),
            "BinaryName": more.get("binary_name", str(fetch.runc())),
            "Root": f"{self.folder}/runc",
        }
        toml = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
        return runtimeoptions_pb.Options(config_body=toml.encode())

    # -- what a script does --------------------------------------------------------------------

    def bundle(self, name: str, *args: str) -> Bundle:
        """Lay out a container; its spec may be changed before `create`."""
        path = self.folder / "state" / name
        bundle = Bundle(path, f"/{self.folder.name}/{name}")
        bundle.spec["annotations"] = {GROUP: "pod"}
        if args:
            bundle.spec["process"] = process(*args)
        self.bundles[name] = bundle
        return bundle

    def create(self, name: str, *args: str, **more: Any) -> pb.CreateTaskResponse | None:
        """Start the shim (or join it) and Create; keywords are fields of the request."""
        bundle = self.bundles.get(name) or self.bundle(name, *args)
        bundle.spec["process"]["terminal"] = more.get("terminal", False)
        bundle.write()
        self.shim.start(bundle.path, name)
        options = more.pop("options", None) or self.options()
        if "rootfs" not in more:
            layer = self.folder / "layers" / str(next(self._layers))
            more["rootfs"] = [overlay(self.lower, layer)]
        request = pb.CreateTaskRequest(
            id=name, bundle=str(bundle.path), options=known.pack(options), **more
        )
        answer: pb.CreateTaskResponse | None = self.call("Create", request, pb.CreateTaskResponse)
        return answer

    def run(self, name: str, *args: str, **more: Any) -> int:
        """Create and Start; init's pid."""
        self.create(name, *args, **more)
        answer = self.start(name)
        assert answer is not None, self.tale
        return answer.pid

    def exec(self, name: str, exec_id: str, *args: str, **more: Any) -> None:
        """Add a process."""
        spec = self.process_spec(*args, terminal=more.get("terminal", False))
        self.call("Exec", pb.ExecProcessRequest(id=name, exec_id=exec_id, spec=spec, **more))

    def process_spec(self, *args: str, **more: Any) -> known.Any:
        """An OCI process as Exec wants it."""
        return known.Any(type_url="process", value=json.dumps(process(*args, **more)).encode())

    def start(self, name: str, exec_id: str = "") -> pb.StartResponse | None:
        """Start init or an exec."""
        request = pb.StartRequest(id=name, exec_id=exec_id)
        answer: pb.StartResponse | None = self.call("Start", request, pb.StartResponse)
        return answer

    def state(self, name: str, exec_id: str = "") -> None:
        """Tell the state of a process."""
        self.call("State", pb.StateRequest(id=name, exec_id=exec_id), pb.StateResponse)

    def kill(self, name: str, signal: int, exec_id: str = "", everyone: bool = False) -> None:
        """Signal a process."""
        request = pb.KillRequest(id=name, exec_id=exec_id, signal=signal, all=everyone)
        self.call("Kill", request)

    def delete(self, name: str, exec_id: str = "") -> None:
        """Delete a process."""
        self.call("Delete", pb.DeleteRequest(id=name, exec_id=exec_id), pb.DeleteResponse)

    def wait(self, name: str, exec_id: str = "") -> None:
        """Wait for the end of a process."""
        self.call("Wait", pb.WaitRequest(id=name, exec_id=exec_id), pb.WaitResponse)

    def waiting(self, name: str, exec_id: str = "") -> Future[pb.WaitResponse]:
        """Wait in the background; not told."""
        request = pb.WaitRequest(id=name, exec_id=exec_id)
        return self._threads.submit(self.shim.call, "Wait", request, pb.WaitResponse)

    def wait_for_program(self, name: str, program: str) -> None:
        """Wait until init is `program`; not told. For a moment after its start it is runc."""
        pid = self.shim.call("State", pb.StateRequest(id=name), pb.StateResponse).pid
        comm = Path("/proc", str(pid), "comm")
        if not await_true(lambda: comm.read_text() == f"{program}\n"):
            raise TimeoutError(f"init of {name} is {comm.read_text()!r}")

    def end(self, name: str) -> None:
        """Kill, Wait, Delete."""
        self.kill(name, KILL)
        self.wait(name)
        self.delete(name)

    def output(self, name: str) -> Output:
        """A FIFO that is read."""
        self.outputs[name] = Output(self.folder / f"{name}.fifo")
        return self.outputs[name]

    def streams(self, name: str, *, stdin: bool = False, terminal: bool = False) -> dict[str, Any]:
        """The stream fields of a request, with FIFOs as containerd makes them."""
        fields: dict[str, Any] = {"stdout": str(self.output(f"{name}-out").path)}
        if stdin:
            fields["stdin"] = str(self.input(f"{name}-in"))
        if not terminal:  # containerd's shim copies both or none
            fields["stderr"] = str(self.output(f"{name}-err").path)
        return {**fields, "terminal": terminal}

    def input(self, name: str) -> Path:
        """A FIFO to write to."""
        path = self.folder / f"{name}.fifo"
        os.mkfifo(path, 0o600)
        return path

    # -- what is told --------------------------------------------------------------------------

    def call(
        self,
        method: str,
        request: Message,
        response: type[Any] = Empty,
    ) -> Any:
        """One call; tells the answer or the class of the error. None on an error."""
        who = "/".join(filter(None, (getattr(request, "id", ""), getattr(request, "exec_id", ""))))
        try:
            answer = self.shim.call(method, request, response)
        except ThawError as error:
            self.tell(f"{method} {who}", type(error).__name__)
            return None
        self.tell(f"{method} {who}", self._shape(answer))
        return answer

    def tell(self, label: str, what: object) -> None:
        """Add a line to the tale; a repeated label gets a number."""
        number, unique = 1, label
        while unique in self.tale:
            number += 1
            unique = f"{label} #{number}"
        self.tale[unique] = str(what).replace(str(self.folder), "FOLDER")

    def tell_events(self, *last: str) -> None:
        """Wait for events that begin with `last`, then tell each container's events in order."""
        for start in last:
            self.sink.wait_for_line(start)
        lines = self.sink.events()
        for name in sorted({line.split()[1].partition("/")[0] for line in lines}):
            own = [line for line in lines if line.split()[1].partition("/")[0] == name]
            self.tell(f"events of {name}", ", ".join(own))

    def _shape(self, answer: Message) -> str:
        return " ".join(self._words(answer)) or "ok"

    def _words(self, answer: Message) -> Iterator[str]:
        for field in answer.FIELDS:
            name = str(field[1])
            value = getattr(answer, name)
            if name == "status":
                yield STATUS[value]
            elif name.endswith(("pid", "exited_at", "version")):
                # Go's zero time is a Timestamp too, of the year 1.
                some = bool(value) and getattr(value, "seconds", 1) > 0
                yield f"{name}={'some' if some else 'none'}" if name != "version" else ""
            elif isinstance(value, known.Any):
                yield known.type_name(value)
            elif value:
                yield f"{name}={value}"

    # -- the end -------------------------------------------------------------------------------

    def end_shim(self) -> None:
        """End whatever the script left, then the shim."""
        pid = self.shim.pid
        for name in self.bundles:
            self.call("Resume", pb.ResumeRequest(id=name))
            self.kill(name, KILL, everyone=True)
            if "NotFound" not in self.tell_state(name):
                self.wait(name)
            self.delete(name)
        self.call("Shutdown", pb.ShutdownRequest(id="pod"))
        address = Path(self.shim.address.removeprefix("unix://"))
        self.shim.forget()
        if not gone(pid):
            raise TimeoutError(f"{self.kind.name} still runs after Shutdown")
        if self.kind.ours:
            assert not address.exists()
        address.unlink(missing_ok=True)  # containerd's own of 2.x leaves it to `delete`

    def close(self) -> None:
        """End everything; the tale is over."""
        told = dict(self.tale)
        if self.shim.address:
            self.end_shim()
        for name, bundle in self.bundles.items():
            self.shim.delete(bundle.path, name)
        self.tale = told

    def release(self) -> None:
        """Let go of our own descriptors and threads."""
        self.shim.close()
        for bundle in self.bundles.values():
            bundle.close()
        for output in self.outputs.values():
            output.close()
        self._threads.shutdown()

    def tell_state(self, name: str) -> str:
        """The state of an init, as told."""
        self.state(name)
        return list(self.tale.values())[-1]


@contextmanager
def driven(kind: Kind, lower: Path) -> Iterator[Session]:
    """A session in a folder of its own; fails if the shim leaves anything behind."""
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}d-"))
    (folder / OWNER).write_text(" ".join(process_identity(os.getpid())))
    (folder / BRIDGE).write_text("")
    try:
        with Sink(folder / "c.sock.ttrpc") as sink:
            session = Session(kind, folder, lower, sink)
            try:
                yield session
                session.close()
            finally:
                session.release()
            left: dict[str, list[str]] = {}

            def clean() -> bool:
                left.clear()
                left.update(_left(folder))
                return not left

            assert await_true(clean), f"{kind.name} left {left}"
    finally:
        _thaw(folder)
        dismantle(folder)


def _thaw(folder: Path) -> None:
    # Nobody can end while frozen (cgroup v1).
    for path in Path("/sys/fs/cgroup/freezer", folder.name).glob("*/freezer.state"):
        path.write_text("THAWED")


def _left(folder: Path) -> dict[str, list[str]]:
    now = holdings(folder)
    found = {
        "processes": sorted(now.processes),
        "mounts": sorted(now.mounts),
        "cgroups": sorted(now.cgroups),
        "files": [str(path) for place in ("thaw/*", "runc/*/*") for path in folder.glob(place)],
    }
    return {kind: what for kind, what in found.items() if what}


def lower_folder(parent: Path) -> Path:
    """A root file system to be shared by sessions as their overlay's lower layer."""
    return make_root(parent / "root")


def copy_of(lower: Path, bundle: Bundle) -> None:
    """Make a bundle's own root folder a copy of `lower`, so that nothing need be mounted."""
    shutil.copytree(lower, bundle.path / "rootfs", symlinks=True, dirs_exist_ok=True)
