"""The start conversation: what containerd's versions say, and a shim that is really started."""

from __future__ import annotations

import hashlib
import json
import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakes.host import open_fds
from fakes.settled import PATIENCE, eventually

from shim import __version__, bootstrap
from shim.bootstrap import SOCKET_FOLDER, Flags, Parameters, answers, group, listen, socket_path
from shim.errors import InvalidArgument, ThawError
from shim.lean.sockets import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, Socket, stream
from shim.proto import runc_pb, runtimeoptions_pb
from shim.proto import task_pb as pb
from shim.proto.bootstrap_pb import BootstrapParams, BootstrapResult, Extension
from shim.proto.known import Any, Empty, pack, unpack
from shim.ttrpc.client import Client

DATA = Path(__file__).parents[1] / "data" / "bootstrap-2.3"
CAPTURED = (DATA / "start.stdin.bin").read_bytes()
DEMO = ["-namespace", "default", "-id", "demo1"]
SHIM = "import sys; from shim import bootstrap; sys.exit(bootstrap.main(sys.argv[1:]))"


# -- flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["-namespace", "k8s.io", "-id", "a b", "-debug", "start"],
        ["-namespace=k8s.io", "-id=a b", "-debug=true", "start"],
        ["--namespace", "k8s.io", "--id=a b", "--debug", "start"],
        ["-id", "a b", "-debug", "-namespace", "k8s.io", "start", "-ignored"],
    ],
)
def test_flags_in_gos_syntax(words: list[str]) -> None:
    flags = Flags(words)
    assert (flags["namespace"], flags["id"], flags.action) == ("k8s.io", "a b", "start")
    assert flags.switches == {"debug"}
    assert flags["bundle"] == ""


def test_a_value_may_look_like_anything() -> None:
    assert Flags(["-address", "", "-id", "-x", "start"])["id"] == "-x"
    assert Flags(["-address=a=b"])["address"] == "a=b"


@pytest.mark.parametrize("off", ["-debug=false", "-debug=0", "-debug=F"])
def test_a_switch_that_is_off(off: str) -> None:
    assert Flags([off, "start"]).switches == set()


@pytest.mark.parametrize("words", [["-nonsense", "start"], ["-id"]])
def test_flags_that_are_wrong(words: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="flag"):
        Flags(words)


# -- stdin and stdout ----------------------------------------------------------------------------


def test_the_captured_bootstrap_params() -> None:
    params = Parameters(Flags([*DEMO, "start"]), CAPTURED)
    assert params.socket_folder == "/run/containerd/s"
    assert unpack(params.options, runc_pb.Options) == runc_pb.Options()


def test_the_answer_has_the_shape_of_the_captured_one() -> None:
    params = Parameters(Flags([*DEMO, "start"]), CAPTURED)
    captured = BootstrapResult.decode((DATA / "start.stdout.bin").read_bytes())
    answer = BootstrapResult.decode(params.answer(captured.address))
    assert answer.address == captured.address
    assert answer.protocol == captured.protocol == "ttrpc"
    assert answer.version in (2, 3), "what containerd 2.x accepts"
    assert answer.encode() == params.answer(captured.address), "and nothing else"


@pytest.mark.parametrize(
    "flags",
    [
        ["-namespace", "default", "-id", "other"],
        ["-namespace", "other", "-id", "demo1"],
        [],
    ],
)
def test_params_of_somebody_else_are_an_any(flags: list[str]) -> None:
    """containerd's own rule: the two messages parse as each other."""
    params = Parameters(Flags([*flags, "start"]), CAPTURED)
    assert params.socket_folder == SOCKET_FOLDER
    assert params.options is not None
    assert params.options.type_url == "demo1", "field 1 of both is text"
    assert params.answer("unix:///x") == b"unix:///x"


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
def test_a_plain_any(prefix: str) -> None:
    options = pack(runtimeoptions_pb.Options(config_path="/etc/thaw/config.toml"))
    options.type_url = prefix + options.type_url
    params = Parameters(Flags([*DEMO, "start"]), options.encode())
    assert unpack(params.options, runtimeoptions_pb.Options).config_path == "/etc/thaw/config.toml"
    assert params.answer("unix:///x") == b"unix:///x", "1.6 takes every byte for the address"


def test_nothing_on_stdin() -> None:
    params = Parameters(Flags([*DEMO, "start"]), b"")
    assert params.options is None
    assert params.answer("unix:///x") == b"unix:///x"


def test_noise_on_stdin() -> None:
    with pytest.raises(ThawError):
        Parameters(Flags([*DEMO, "start"]), b"\xff\xff\xff\xff")


def test_the_options_among_other_extensions() -> None:
    options = pack(runc_pb.Options(binary_name="crun"))
    options.type_url = "type.googleapis.com/" + options.type_url
    extensions = [
        Extension(),
        Extension(value=Any(type_url="x/y.Features", value=b"z")),
        Extension(value=options),
    ]
    made = BootstrapParams(
        instance_id="demo1", namespace="default", socket_dir="/run/s", extensions=extensions
    )
    params = Parameters(Flags([*DEMO, "start"]), made.encode())
    assert params.socket_folder == "/run/s"
    assert unpack(params.options, runc_pb.Options).binary_name == "crun"


# -- the pod's socket ----------------------------------------------------------------------------


def test_where_the_socket_is() -> None:
    """As containerd's own tests compute it."""
    joined = "/run/containerd/containerd.sock/k8s.io/pod1"
    path = socket_path(SOCKET_FOLDER, "/run/containerd/containerd.sock", "k8s.io", "pod1")
    assert path == f"/run/containerd/s/{hashlib.sha256(joined.encode()).hexdigest()}"
    assert len(f"unix://{path}") < 108


def test_the_joined_path_is_clean() -> None:
    assert socket_path("/s", "/run//c.sock/", "ns", "id") == socket_path(
        "/s", "/run/c.sock", "ns", "id"
    )
    digest = hashlib.sha256(b"ns/id").hexdigest()
    assert socket_path("/s", "", "ns", "id") == f"/s/{digest}", "as Go joins an empty word"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, "c1"),
        ({"annotations": None}, "c1"),
        ({"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}, "pod"),
        (
            {
                "annotations": {
                    "io.kubernetes.cri.sandbox-id": "pod",
                    "io.containerd.runc.v2.group": "group",
                }
            },
            "group",
        ),
        ({"annotations": {"io.kubernetes.cri.sandbox-id": ""}}, "c1"),
    ],
)
def test_who_shares_a_shim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: object, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(spec))
    assert group(Flags(["-id", "c1"])) == expected


@pytest.mark.parametrize("content", [None, "{", b"\xff"])
def test_a_spec_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(InvalidArgument, match=f"cannot read {tmp_path}/config.json"):
        group(Flags(["-id", "c1"]))


def test_a_new_socket_is_roots_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "s/socket")
    listener = listen(path)
    assert listener is not None
    with listener:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == 0o700
        assert answers(path)


def test_a_living_shim_is_joined(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    before = open_fds()
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(path)
        living.listen()
        assert listen(path) is None
        assert os.path.exists(path)
    assert open_fds(before) == set()


def test_a_living_shim_that_is_busy_is_not_robbed(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as living, socket.socket(socket.AF_UNIX) as first:
        living.bind(path)
        living.listen(0)
        first.connect(path)
        with socket.socket(socket.AF_UNIX) as second:
            second.setblocking(False)
            with suppress(BlockingIOError):
                second.connect(path)
            assert answers(path), "nobody accepts just now"
            assert listen(path) is None


def test_a_dead_shims_socket_is_taken_over(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    assert not answers(path)
    listener = listen(path)
    assert listener is not None
    with listener:
        assert answers(path)


@pytest.mark.parametrize("dead", [False, True])
def test_one_of_several_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    """Whatever they find, and however long each of them takes for what it does then."""
    path, count = str(tmp_path / "socket"), 4
    unlink, together = os.unlink, threading.Barrier(count)

    class Slow(Socket):
        def listen(self, backlog: int = 0) -> None:
            time.sleep(0.05)
            super().listen(backlog)

    def slow_unlink(path: str) -> None:
        time.sleep(0.05)
        unlink(path)

    def found(results: list[Socket | None]) -> None:
        together.wait(PATIENCE)
        results.append(listen(path))

    if dead:
        with stream() as left:
            left.bind(path)
    monkeypatch.setattr(bootstrap, "stream", lambda: Slow(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC))
    monkeypatch.setattr(bootstrap, "_unlink", slow_unlink)
    results: list[Socket | None] = []
    threads = [threading.Thread(target=found, args=(results,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (listener,) = [each for each in results if each is not None]
    with listener:
        assert len(results) == count
        assert answers(path)


def test_a_path_that_cannot_be_bound(tmp_path: Path) -> None:
    before = open_fds()
    with pytest.raises(OSError, match="too long"):
        listen(str(tmp_path / ("x" * 120)))
    assert open_fds(before) == set()


# -- the door ------------------------------------------------------------------------------------


def run(*words: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The program as containerd runs it, one standard error with standard output."""
    return subprocess.run(
        [sys.executable, "-c", SHIM, *words],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        timeout=PATIENCE,
        check=False,
    )


def test_version(tmp_path: Path) -> None:
    done = run("-v", cwd=tmp_path)
    assert done.returncode == 0
    assert __version__ in done.stdout.decode()


@pytest.mark.parametrize("words", [["dance"], [], ["-nonsense"], ["-id", "x", "start"]])
def test_what_cannot_be_done_is_said(tmp_path: Path, words: list[str]) -> None:
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith(b"containerd-shim-thaw-v1: ")
    assert done.stdout.count(b"\n") == 1, "one line, no traceback"


class Started:
    """A shim that `start` has left behind."""

    def __init__(self, folder: Path, sockets: Path, name: str = "c1", **annotations: str) -> None:
        self.bundle = folder / name
        self.bundle.mkdir()
        spec = {"annotations": {k.replace("_", "."): v for k, v in annotations.items()}}
        (self.bundle / "config.json").write_text(json.dumps(spec))
        os.mkfifo(self.bundle / "log")
        params = BootstrapParams(instance_id=name, namespace="default", socket_dir=str(sockets))
        self.words = ["-namespace", "default", "-address", f"{folder}/c.sock", "-id", name]
        self.done = run(*self.words, "start", cwd=self.bundle, stdin=params.encode())
        self.result = BootstrapResult.decode(self.done.stdout)

    def pid(self) -> int:
        with Client(self.result.address, timeout=PATIENCE) as client:
            request = pb.ConnectRequest(id="x")
            answer = client.call(
                "containerd.task.v3.Task", "Connect", request, pb.ConnectResponse, PATIENCE
            )
            return answer.shim_pid

    def shutdown(self) -> None:
        """Ask it to end, and wait until it has."""
        gone = os.pidfd_open(self.pid())
        with Client(self.result.address, timeout=PATIENCE) as client:
            request = pb.ShutdownRequest(id="x")
            client.call("containerd.task.v2.Task", "Shutdown", request, Empty, PATIENCE)
        assert select.select([gone], [], [], PATIENCE)[0]
        os.close(gone)


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="thaw-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def started(tmp_path: Path, sockets: Path) -> Iterator[Started]:
    made = Started(tmp_path, sockets)
    yield made
    with suppress(ThawError, OSError):
        made.shutdown()


def test_start_leaves_a_shim_that_answers(started: Started, tmp_path: Path, sockets: Path) -> None:
    assert started.done.returncode == 0
    assert (started.result.version, started.result.protocol) == (2, "ttrpc")
    path = socket_path(str(sockets), f"{tmp_path}/c.sock", "default", "c1")
    assert started.result.address == f"unix://{path}"
    assert (started.bundle / "address").read_text() == f"unix://{path}", "what 1.6 reads verbatim"
    pid = started.pid()
    assert os.readlink(f"/proc/{pid}/cwd") == str(started.bundle)
    assert os.getpgid(pid) == pid
    streams = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)}
    assert streams == {"/dev/null"}, "containerd waits until they are closed"
    started.shutdown()
    assert not os.path.exists(path)


def test_a_second_container_of_the_pod_joins(
    started: Started, tmp_path: Path, sockets: Path
) -> None:
    other = Started(tmp_path, sockets, "c2", io_containerd_runc_v2_group="c1")
    assert other.result.address == started.result.address
    assert (other.bundle / "address").read_text() == started.result.address
    assert other.pid() == started.pid()


def test_an_idle_shim_is_one_thread_with_few_descriptors(started: Started) -> None:
    pid = started.pid()
    allowed = {"/dev/null", "socket", "anon_inode", "pipe", str(started.bundle / "log")}
    assert {target.split(":")[0] for target in open_files_of(pid)} <= allowed
    eventually(lambda: len(os.listdir(f"/proc/{pid}/task")) == 1)


def open_files_of(pid: int) -> Iterator[str]:
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # our connection is being closed
            yield os.readlink(f"/proc/{pid}/fd/{fd}")


def test_a_daemon_that_cannot_be_made_says_so_in_its_log(tmp_path: Path, sockets: Path) -> None:
    """`start` has answered by then: containerd's log is the only place left."""
    bundle = tmp_path / "c1"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    os.mkfifo(bundle / "log")
    reader = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    keeper = os.open(bundle / "log", os.O_WRONLY)
    params = BootstrapParams(instance_id="c1", namespace="x", socket_dir=str(sockets))
    script = f"import shim.daemon; shim.daemon.Daemon = None; {SHIM}"
    words = ["-namespace", "x", "-address", "/a", "-id", "c1", "start"]
    said: list[bytes] = []
    thread = threading.Thread(target=lambda: said.append(os.read(reader, 4096)))
    thread.start()
    subprocess.run(
        [sys.executable, "-c", script, *words],
        input=params.encode(),
        cwd=bundle,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    thread.join(PATIENCE)
    assert b"the shim ends" in said[0]
    os.close(reader)
    os.close(keeper)
