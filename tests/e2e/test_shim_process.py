"""The shim as a process: its command line, its place on the machine, what it keeps open."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from bed import fetch
from drive.session import KILL, Session
from drive.shim import NAMESPACE, Kind, await_true, gone

from shim.cgroup import is_unified
from shim.errors import FailedPrecondition, InvalidArgument, ThawError
from shim.proto import runc_pb, runtimeoptions_pb
from shim.proto import task_pb as pb
from shim.proto.introspection_pb import RuntimeInfo
from shim.proto.known import Any, Empty, pack

SLEEP = ("sleep", "1000")


def run(ours: Kind, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    path = f"{fetch.runc().parent}:/usr/bin:/bin"
    return subprocess.run(
        [ours.program, *words],
        input=stdin,
        capture_output=True,
        cwd="/",
        env={"PATH": path},
        check=False,
    )


def test_version(ours: Kind) -> None:
    done = run(ours, "-v")
    assert done.returncode == 0
    assert b"0.1.0" in done.stdout


@pytest.mark.parametrize("options", [None, runc_pb.Options(), runtimeoptions_pb.Options()])
def test_info_tells_what_runc_can(ours: Kind, options: object) -> None:
    stdin = b"" if options is None else pack(options).encode()  # type: ignore[arg-type]
    done = run(ours, "-info", stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    info = RuntimeInfo.decode(done.stdout)
    assert info.name == "io.containerd.thaw.v1"
    assert info.version is not None
    assert info.version.version == "0.1.0"
    assert info.features is not None
    told = subprocess.run([fetch.runc(), "features"], capture_output=True, check=True).stdout
    assert json.loads(info.features.value) == json.loads(told)
    schema = "types.containerd.io/opencontainers/runtime-spec/1"
    assert info.features.type_url == f"{schema}/features/Features"


def test_a_bad_command_line_says_so(ours: Kind) -> None:
    for words in (["-nonsense", "start"], ["juggle"], ["-id"], []):
        done = run(ours, *words)
        assert done.returncode == 1
        assert done.stderr.startswith(b"containerd-shim-thaw-v1: ")


def test_start_without_a_spec_leaves_no_socket(session: Session) -> None:
    bundle = session.bundle("a")
    done = session.shim.run(bundle.path, [*session.shim.flags("a"), "start"])
    assert done.returncode == 1
    assert b"config.json" in done.stderr
    assert not any(os.path.exists(socket_of(session, name)) for name in ("a", "pod"))


def socket_of(session: Session, group: str) -> str:
    name = f"{session.folder}/c.sock/{NAMESPACE}/{group}"
    return f"/run/containerd/s/{hashlib.sha256(name.encode()).hexdigest()}"


def test_the_socket_is_where_containerd_looks(session: Session) -> None:
    session.create("a", *SLEEP)
    path = socket_of(session, "pod")  # the group that the session's spec names
    assert session.shim.address == f"unix://{path}"
    assert (session.folder / "state/a/address").read_text() == session.shim.address
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_dead_shims_socket_is_taken_over(session: Session) -> None:
    session.create("a", *SLEEP)
    first = session.shim.pid
    os.kill(first, signal.SIGKILL)
    assert gone(first)
    session.shim.delete(session.bundles["a"].path, "a")
    session.shim.forget()
    session.create("b", *SLEEP)
    assert session.shim.pid != first
    session.bundles.pop("a").close()


def test_it_settles_in(session: Session) -> None:
    session.run("a", *SLEEP)
    pid = session.shim.pid
    assert os.readlink(f"/proc/{pid}/cwd") == str(session.folder / "state/a")
    assert os.getpgid(pid) == pid
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == min(1000, ours + 1)
    targets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in ("0", "1", "2")}
    assert targets == {"/dev/null"}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("how", ["runc", "toml"])
def test_it_joins_the_shim_cgroup(session: Session, there: bool, how: str) -> None:
    cgroup = f"/{session.folder.name}/shims"
    root = "/sys/fs/cgroup"
    roots = [Path(root)] if is_unified() else [Path(root, name) for name in ("cpu", "memory")]
    groups = [Path(f"{root}{cgroup}") for root in roots if there]
    for group in groups:
        group.mkdir(parents=True)
    toml = f'ShimCgroup = "{cgroup}"\n'.encode()
    session.shim.options = pack(
        runc_pb.Options(shim_cgroup=cgroup)
        if how == "runc"
        else runtimeoptions_pb.Options(config_body=toml)
    )
    session.run("a", *SLEEP)
    pid = session.shim.pid
    member = Path(f"/proc/{pid}/cgroup").read_text()
    assert member.count(f"{cgroup}\n") >= len(groups)
    assert ("settling in" in session.bundles["a"].log()) != there
    session.end_shim()
    for group in groups:
        group.rmdir()


def test_idle_it_is_one_thread(session: Session) -> None:
    session.run("a", *SLEEP)
    for number in range(3):
        name = f"x{number}"
        session.exec("a", name, "true")
        session.start("a", name)
        session.wait("a", name)
        session.delete("a", name)
    tasks = Path(f"/proc/{session.shim.pid}/task")
    assert await_true(lambda: len(list(tasks.iterdir())) == 1)


@pytest.mark.parametrize("terminal", [False, True])
def test_execs_leave_nothing_open(session: Session, terminal: bool) -> None:
    session.run("a", *SLEEP)
    pid = session.shim.pid
    tasks = Path(f"/proc/{pid}/task")

    def execs(start: int, end: int) -> None:
        for number in range(start, end):
            name = f"x{number}"
            streams = session.streams(name, stdin=True, terminal=terminal)
            session.exec("a", name, "echo", "hello", **streams)
            session.start("a", name)
            session.wait("a", name)
            session.delete("a", name)
            assert b"hello" in session.outputs[f"{name}-out"].to_the_end()

    execs(0, 5)
    # Once the sender of events has ended, its socket is closed.
    assert await_true(lambda: len(list(tasks.iterdir())) == 1)
    before = open_files(pid)
    execs(5, 55)
    assert await_true(lambda: open_files(pid) == before), open_files(pid)
    kept = {path.name for path in (session.folder / "state/a").iterdir()}
    assert not [name for name in kept if name.startswith("x")]


def open_files(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    found = []
    for fd in folder.iterdir():
        try:
            found.append(os.readlink(fd).partition(":[")[0])
        except OSError:
            pass
    return sorted(found)


@pytest.mark.parametrize("debug", [False, True])
def test_the_log_goes_to_containerd(session: Session, debug: bool) -> None:
    bundle = session.bundle("a", *SLEEP)
    bundle.spec["annotations"]["thaw.dev/snapshot"] = "Not A Name"
    bundle.write()
    session.shim.start(bundle.path, "a", *(["-debug"] if debug else []))
    session.create("a")
    log = bundle.log()
    assert "level=warning" in log
    assert "booting cold" in log
    assert log.startswith('time="')
    assert all("level=" in line for line in log.splitlines())


def test_the_pods_criu_configuration_is_replaced(session: Session) -> None:
    bundle = session.bundle("a", *SLEEP)
    evil = session.folder / "evil.conf"
    evil.write_text("action-script /bin/false\n")
    bundle.spec["annotations"]["org.criu.config"] = str(evil)
    session.create("a")
    spec = json.loads((bundle.path / "config.json").read_text())
    ours = spec["annotations"]["org.criu.config"]
    assert ours == f"{session.folder}/thaw/{NAMESPACE}/a/criu.conf"
    assert "action-script" not in Path(ours).read_text()
    state = json.loads((session.folder / "runc" / NAMESPACE / "a/state.json").read_text())
    labels = state["config"]["labels"]
    assert f"org.criu.config={ours}" in labels
    assert str(evil) not in json.dumps(labels)


def test_delete_may_come_again_and_touches_no_other(session: Session) -> None:
    session.run("a", *SLEEP)
    session.run("b", *SLEEP)
    pid = session.shim.pid
    for _ in range(2):
        answer = session.shim.delete(session.bundles["a"].path, "a")
        assert answer.exit_status == 137
        assert answer.exited_at is not None
    session.wait("a")
    session.state("b")
    assert "running" in list(session.tale.values())[-1]
    assert session.shim.pid == pid
    nowhere = session.folder / "state/never"
    answer = session.shim.delete(nowhere, "never", cwd=session.folder)
    assert (answer.pid, answer.exit_status) == (0, 137)


def test_a_killed_shims_containers_are_deleted(session: Session) -> None:
    init = session.run("a", *SLEEP)
    pid = session.shim.pid
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    answer = session.shim.delete(session.bundles["a"].path, "a")
    assert answer.pid == init
    assert gone(init)
    session.bundles.pop("a").close()
    session.shim.forget()


def test_options_of_every_kind(session: Session) -> None:
    folder = session.folder
    body = session.options()
    assert isinstance(body, runtimeoptions_pb.Options)
    path = folder / "thaw.toml"
    path.write_bytes(body.config_body)
    runc = runc_pb.Options(binary_name=str(fetch.runc()), root=f"{folder}/runc")
    kinds = {
        "body": body,
        "path": runtimeoptions_pb.Options(config_path=str(path)),
        "runc": runc,
    }
    for name, options in kinds.items():
        session.run(name, *SLEEP, options=options)
        kept = json.loads((folder / "state" / name / "options.json").read_text())
        assert kept["Root"] == f"{folder}/runc"
        assert os.stat(folder / "state" / name / "options.json").st_mode & 0o777 == 0o600
        runtime = (folder / "state" / name / "runtime").read_text()
        assert runtime == str(fetch.runc())
        assert (folder / "runc" / NAMESPACE / name / "state.json").exists()
        session.end(name)


@pytest.mark.parametrize(
    "options",
    [
        pb.Mount(type="not options"),
        runtimeoptions_pb.Options(config_path="/no/such/file"),
        runtimeoptions_pb.Options(config_body=b"Root = 7"),
        runtimeoptions_pb.Options(config_body=b"= no toml"),
    ],
)
def test_options_that_make_no_sense(session: Session, options: object) -> None:
    session.create("a", *SLEEP, options=options)
    assert session.tale == {"Create a": "InvalidArgument"}
    assert session.sink.events() == []


def test_requests_that_make_no_sense(session: Session) -> None:
    """Those that end containerd's own shim, or count an exit twice there."""
    session.run("a", *SLEEP)
    calls = {
        "Update": pb.UpdateTaskRequest(id="a"),
        "Exec": pb.ExecProcessRequest(id="a", exec_id="x"),
    }
    for method, request in calls.items():
        with pytest.raises(InvalidArgument):
            session.shim.call(method, request, Empty)
    with pytest.raises(InvalidArgument):
        session.shim.call("Exec", pb.ExecProcessRequest(id="a", spec=Any()), Empty)
    spec = Any(type_url="process", value=json.dumps({"args": []}).encode())
    request = pb.ExecProcessRequest(id="a", exec_id="junk", spec=spec)
    session.shim.call("Exec", request, Empty)
    with pytest.raises(ThawError):
        session.shim.call("Start", pb.StartRequest(id="a", exec_id="junk"), pb.StartResponse)
    session.exec("a", "twice", *SLEEP)
    session.start("a", "twice")
    with pytest.raises(FailedPrecondition):
        session.shim.call("Start", pb.StartRequest(id="a", exec_id="twice"), pb.StartResponse)
    session.kill("a", KILL, "twice")
    session.wait("a", "twice")
    session.end("a")
    session.sink.wait_for_line("delete a")
    exits = [line for line in session.sink.events() if line.startswith("exit")]
    assert exits == ["exit a/twice 137", "exit a 137"]


def test_an_id_mapped_root_is_refused_by_name(session: Session) -> None:
    bundle = session.bundle("a", "id", "-u")
    linux = bundle.spec["linux"]
    linux["namespaces"].append({"type": "user"})
    for kind in ("uidMappings", "gidMappings"):
        linux[kind] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    options = [f"lowerdir={session.lower}:{session.lower}/tmp", "uidmap=0:100000:65536"]
    mount = pb.Mount(type="overlay", source="overlay", options=options)
    bundle.write()
    session.shim.start(bundle.path, "a")
    request = pb.CreateTaskRequest(
        id="a", bundle=str(bundle.path), rootfs=[mount], options=pack(session.options())
    )
    with pytest.raises(ThawError, match="id-mapped"):
        session.shim.call("Create", request, pb.CreateTaskResponse)
