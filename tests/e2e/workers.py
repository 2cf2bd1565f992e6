"""What the tests of snapshots and restores share: workers that know who they are, and questions.

A worker draws a token when it boots and tells it when it is asked: the same token from another
container means that this one's memory came from a snapshot. Questions about a container that the
CRI has no word for (its host pid, its shim) are answered from its bundle.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from bed.cri import api_pb2 as api
from bed.images import BUSYBOX_IMAGE, HOST_IMAGE
from bed.lane import CRI_NAMESPACE, Lane
from bed.leaks import command_line
from bed.pod import Container, Mount, Pod
from stored import forget

from shim.proto import task_pb as pb
from shim.ttrpc.client import Client

TASKS = "containerd.task.v2.Task"
SNAPSHOT = "thaw.dev/snapshot"
ON_FAILURE = "thaw.dev/on-failure"
FAIL = {ON_FAILURE: "fail"}

# It only ever waits, so that it is quick to dump and always in the same state: it makes no process
# once it has said that it has booted.
WORKER = """\
token=$(cat /proc/sys/kernel/random/uuid)
asked=0
trap 'asked=$((asked + 1)); echo "token $token asked $asked"' USR1
trap 'exit 7' TERM
sleep 100000 &
echo "booted $token"
while :; do wait; done
"""
COMMAND = ["sh", "-c", WORKER]
USR = Mount("/usr", "/usr")
PYTHON = "/usr/bin/python3"
_SECONDS = 60.0


class Told(NamedTuple):
    """What a worker said: its token, and how often it has been asked."""

    token: str
    asked: int


def boot(
    pod: Pod, name: str = "app", args: Sequence[str] = COMMAND, *, image: str = BUSYBOX_IMAGE
) -> Container:
    """Start a worker cold and wait until it has booted."""
    container = pod.container(name, image, args).start()
    container.wait_for_log("booted")
    return container


def ask(container: Container) -> Told:
    """Ask a worker for its token; the answer comes by way of its log."""
    before = container.log().count("token ")
    container.exec(["kill", "-USR1", "1"])
    wait_until(lambda: container.log().count("token ") > before, f"an answer of {container.name}")
    words = container.log().rpartition("token ")[2].split()
    return Told(words[0], int(words[2]))


def token_of(container: Container) -> str:
    """The token that a worker drew in this container, at its cold boot."""
    return container.wait_for_log("booted").partition("booted ")[2].split()[0]


def booted_cold(container: Container) -> bool:
    """Whether the worker's log says that it went through its boot here."""
    return "booted" in container.log()


def script(program: str) -> list[str]:
    """A command for HOST_IMAGE with USR mounted: the host's own Python."""
    return [PYTHON, "-ISuc", program]


def python(container: Container, program: str) -> str:
    """Run Python in a container of HOST_IMAGE and return what it printed."""
    done = container.exec(script(program))
    assert done.exit_code == 0, done
    return done.stdout


def host_python(pod: Pod, program: str, *, attempt: int = 0) -> Container:
    """Create a container that runs `program` in the host's Python."""
    return pod.container("app", HOST_IMAGE, script(program), mounts=[USR], attempt=attempt)


def checkpoint(lane: Lane, container: Container, name: str, *more: str) -> None:
    """`thaw checkpoint` of a pod's container."""
    lane.thaw("checkpoint", container.id, name, "--namespace", CRI_NAMESPACE, *more)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = _SECONDS) -> None:
    """Look again and again until `condition` holds; TimeoutError names `what`."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def executed(container: Container, program: str) -> Container:
    """`container`, once its first process is `program`: for a moment after a start it is runc."""

    def is_it() -> bool:
        return container.exec(["cat", "/proc/1/comm"]).stdout == f"{program}\n"

    wait_until(is_it, f"{program} in {container.name}")
    return container


@contextmanager
def kept_snapshot(lane: Lane, name: str, make: Callable[[Pod], Container]) -> Iterator[str]:
    """A snapshot of the container that `make` starts in a pod; deleted at the end of the block."""
    with lane.pod(f"{name}-maker") as pod:
        checkpoint(lane, make(pod), name)
    try:
        yield name
    finally:
        forget(lane, name)


def drop_cache(path: Path) -> None:
    """Take a file out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


# -- what the shim wrote into containerd's log ----------------------------------------------------


class Line(NamedTuple):
    """A line of the shim's log."""

    message: str
    fields: Mapping[str, str]


def shim_lines(lane: Lane, container_id: str) -> list[Line]:
    """Every line that a shim wrote about a container."""
    text = lane.places.log.read_text(errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()  # containerd may just be writing
    wanted = f"container={container_id}"
    return [_parse(line) for line in lines if wanted in line and " msg=" in line]


def awaited_lines(lane: Lane, container_id: str, *messages: str) -> list[Line]:
    """Those with one of these messages, once there is one: they go by way of containerd."""
    found: list[Line] = []

    def there() -> bool:
        found[:] = [line for line in shim_lines(lane, container_id) if line.message in messages]
        return bool(found)

    wait_until(there, f"{' or '.join(messages)!r} of {container_id} in the log")
    return found


def outcome(lane: Lane, container: Container) -> Line:
    """The one line about what became of a restore; there must be exactly one."""
    ends = ("restored", "booting cold", "not restored", "restore cancelled")
    found = awaited_lines(lane, container.id, *ends)
    assert len(found) == 1, found
    return found[0]


_WORD = re.compile(r'([a-z]+)=("(?:[^"\\]|\\.)*"|\S*)')


def _parse(line: str) -> Line:
    fields = {key: _unquote(value) for key, value in _WORD.findall(line)}
    return Line(fields.pop("msg"), fields)


def _unquote(value: str) -> str:
    return str(json.loads(value)) if value.startswith('"') else value


# -- a container's place on the node --------------------------------------------------------------


def bundle(lane: Lane, container_id: str, namespace: str = CRI_NAMESPACE) -> Path:
    """The container's bundle."""
    return lane.places.state / "io.containerd.runtime.v2.task" / namespace / container_id


def init_pid(lane: Lane, container_id: str, namespace: str = CRI_NAMESPACE) -> int:
    """The host pid of the container's first process."""
    return int((bundle(lane, container_id, namespace) / "init.pid").read_text())


def task_state(lane: Lane, container_id: str) -> Path:
    """The container's folder below Thaw's state folder."""
    return lane.places.thaw_state / CRI_NAMESPACE / container_id


def shim_client(lane: Lane, container_id: str) -> Client:
    """A connection to the shim of a container."""
    return Client(os.path.realpath(task_state(lane, container_id) / "shim.sock"))


def shim_pid(lane: Lane, container_id: str) -> int:
    """The pid of the container's shim."""
    with shim_client(lane, container_id) as shim:
        request = pb.ConnectRequest(id=container_id)
        return int(shim.call(TASKS, "Connect", request, pb.ConnectResponse).shim_pid)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int, word: str) -> list[int]:
    """The processes below `pid` with this word in their command line, parents first.

    One that has just been forked has its parent's until it becomes another program.
    """
    found = []
    for child in _children(pid):
        found += [child] if word in command_line(child) else []
        found += children(child, word)
    return found


def _children(pid: int) -> list[int]:
    found: list[str] = []
    with suppress(OSError):  # it has ended
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):  # only that thread has
                found += Path(f"/proc/{pid}/task/{task}/children").read_text().split()
    return [int(child) for child in found]


def removed(pod: Pod) -> bool:
    """Remove the pod, if containerd has noticed already that its shim is gone."""
    try:
        pod.remove()
    except grpc.RpcError:
        return False
    return True


def exited(container: Container) -> bool:
    """Whether the runtime says that it has ended."""
    return bool(container.status().state == api.CONTAINER_EXITED)


def memory_limit(pid: int) -> int:
    """The memory limit of a process's cgroup, in bytes."""
    for line in Path("/proc", str(pid), "cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if "memory" in kinds.split(","):
            return int(Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes").read_text())
    _, _, path = Path("/proc", str(pid), "cgroup").read_text().strip().split(":", 2)
    return int(Path(f"/sys/fs/cgroup{path}/memory.max").read_text())
