"""Scripts about one container's init: the states, the signals, the end. Each is played by any shim.

A script tells, in its Session, only what must be the same for every shim.
"""

from __future__ import annotations

import json
from pathlib import Path

from drive.session import KILL, TERM, Session
from shim.cgroup import is_unified
from shim.errors import ThawError
from shim.proto import task_pb as pb
from shim.proto.known import Any, type_name, unpack

SLEEP = ("sleep", "1000")
RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


def a_whole_life(s: Session) -> None:
    s.create("a", *SLEEP)
    s.state("a")
    waiters = [s.waiting("a") for _ in range(20)]
    s.start("a")
    s.state("a")
    connected = s.shim.call("Connect", pb.ConnectRequest(id="a"), pb.ConnectResponse)
    s.tell("task pid is init's", bool(connected.task_pid and connected.shim_pid))
    s.kill("a", KILL)
    s.tell("waiters", {waiter.result(60).exit_status for waiter in waiters})
    s.wait("a")  # TestWaitStoppedTask
    s.state("a")
    s.kill("a", TERM)
    s.kill("a", KILL, everyone=True)
    s.start("a")
    s.delete("a")
    s.delete("a")
    for method in ("State", "Pids", "Stats", "Pause", "Resume"):
        s.call(method, getattr(pb, f"{method}Request")(id="a"), pb.StateResponse)
    s.wait("a")
    s.tell_events("delete a")


def exit_statuses(s: Session) -> None:
    for name, ending in {"three": "exit 3", "term": "kill -TERM $$", "zero": "true"}.items():
        # A shell that is pid 1 is not killed by its own signal: its child's end is passed on.
        s.run(name, "sh", "-c", f"sh -c '{ending}'; exit $?")
        s.wait(name)
        s.delete(name)
        s.tell_events(f"delete {name}")


def an_unknown_container(s: Session) -> None:
    s.run("a", *SLEEP)
    other = "unknown"
    for call in (s.state, s.start, s.wait, s.delete):
        call(other)
    s.kill(other, TERM)
    s.exec(other, "x", "true")
    s.call("ResizePty", pb.ResizePtyRequest(id=other))
    s.call("CloseIO", pb.CloseIORequest(id=other))
    s.call("Update", pb.UpdateTaskRequest(id=other, resources=_limit(1 << 26)))
    s.call("Checkpoint", pb.CheckpointTaskRequest(id=other, path="/tmp/none"))
    connected = s.shim.call("Connect", pb.ConnectRequest(id=other), pb.ConnectResponse)
    s.tell("Connect", (bool(connected.shim_pid), connected.task_pid))
    s.call("Shutdown", pb.ShutdownRequest(id=other))
    s.state("a")  # Shutdown does nothing while a container lives


def what_the_service_does_not_have(s: Session) -> None:
    s.create("a", *SLEEP)
    for service, method in ((s.shim.service, "Juggle"), ("containerd.task.v7.Task", "State")):
        try:
            s.shim.call_other(service, method)
        except ThawError as error:
            s.tell(f"{'a service' if 'v7' in service else 'a method'}", type(error).__name__)


def no_such_program(s: Session) -> None:
    s.create("a", "/no/such/program")
    s.state("a")
    s.tell("mounted", _mounted(s))
    s.create("b", *SLEEP)
    s.tell("created beside it", s.sink.wait_for_line("create b"))


def no_such_runtime(s: Session) -> None:
    s.create("a", *SLEEP, options=s.options(binary_name="/no/such/runc"))
    s.state("a")
    s.tell("mounted", _mounted(s))
    s.tell("events", s.sink.events())


def a_root_that_cannot_be_mounted(s: Session) -> None:
    mounts = [pb.Mount(type="bind", source="/no/such/folder", options=["rbind", "rw"])]
    s.create("a", *SLEEP, rootfs=mounts)
    s.state("a")
    s.tell("mounted", _mounted(s))
    s.tell("events", s.sink.events())


def killed_before_start(s: Session) -> None:
    """containerd's TestIssue9103."""
    s.create("a", *SLEEP)
    waiter = s.waiting("a")
    s.kill("a", KILL)
    s.tell("waiter", waiter.result(60).exit_status)
    s.state("a")
    s.start("a")
    s.state("a")
    s.kill("a", KILL)
    s.delete("a")
    s.tell_events("delete a")


def started_twice(s: Session) -> None:
    s.run("a", *SLEEP)
    s.start("a")
    s.state("a")
    s.end("a")
    s.tell_events("delete a")


def created_twice(s: Session) -> None:
    s.run("a", *SLEEP)
    s.create("a", *SLEEP)
    s.state("a")
    s.exec("a", "x", "true")
    s.start("a", "x")
    s.wait("a", "x")


def deleted_at_every_stage(s: Session) -> None:
    s.create("created", *SLEEP)
    s.delete("created")
    s.state("created")
    s.run("running", *SLEEP)
    s.delete("running")
    s.state("running")
    s.run("paused", *SLEEP)
    s.call("Pause", pb.PauseRequest(id="paused"))
    s.delete("paused")
    s.state("paused")
    s.tell("mounted", len(_mounted(s)))


def paused_and_resumed(s: Session) -> None:
    s.create("a", *SLEEP)
    for method in ("Pause", "Resume"):
        s.call(method, getattr(pb, f"{method}Request")(id="a"))
    s.start("a")
    s.call("Resume", pb.ResumeRequest(id="a"))
    s.call("Pause", pb.PauseRequest(id="a"))
    s.state("a")
    s.call("Pause", pb.PauseRequest(id="a"))
    s.start("a")
    s.call("Resume", pb.ResumeRequest(id="a"))
    s.state("a")
    s.call("Pause", pb.PauseRequest(id="a"))
    s.kill("a", KILL)  # runc thaws what it kills
    s.wait("a")
    for method in ("Pause", "Resume"):
        s.call(method, getattr(pb, f"{method}Request")(id="a"))
    s.delete("a")
    s.tell_events("delete a")


def signals(s: Session) -> None:
    s.run("a", "sh", "-c", "trap 'exit 7' USR1; while :; do sleep 0.05; done")
    s.exec("a", "x", *SLEEP)
    s.start("a", "x")
    s.kill("a", 99)
    s.kill("a", TERM, "x", everyone=True)
    s.wait("a", "x")  # of two signals that wait for a process, the kernel would take the KILL first
    s.kill("a", 0)
    s.state("a")
    s.kill("a", KILL, everyone=True)
    s.wait("a")
    s.state("a")


def updated(s: Session) -> None:
    s.create("a", *SLEEP)
    for limit in (128 << 20, 64 << 20):
        s.call("Update", pb.UpdateTaskRequest(id="a", resources=_limit(limit)))
        s.tell("limit", _memory_limit(s, "a"))
        s.start("a")
    for junk in (b"no json", b"[]"):
        resources = Any(type_url=RESOURCES, value=junk)
        s.call("Update", pb.UpdateTaskRequest(id="a", resources=resources))
    s.call("Pause", pb.PauseRequest(id="a"))
    s.call("Update", pb.UpdateTaskRequest(id="a", resources=_limit(96 << 20)))
    s.tell("limit", _memory_limit(s, "a"))
    s.call("Resume", pb.ResumeRequest(id="a"))
    s.kill("a", KILL)
    s.wait("a")
    s.call("Update", pb.UpdateTaskRequest(id="a", resources=_limit(1 << 27)))


def measured(s: Session) -> None:
    s.run("a", "sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=8; exec sleep 1000")
    s.wait_for_program("a", "sleep")  # dd has ended: it counts, too
    answer = s.shim.call("Stats", pb.StatsRequest(id="a"), pb.StatsResponse)
    assert answer.stats is not None
    s.tell("type", type_name(answer.stats))
    (_tell_metrics_v2 if is_unified() else _tell_metrics_v1)(s, answer.stats)
    s.kill("a", KILL)
    s.wait("a")
    s.call("Stats", pb.StatsRequest(id="a"), pb.StatsResponse)


def a_plain_folder(s: Session) -> None:
    """Without mounts in the request the bundle's own rootfs is used, and kept."""
    from drive.session import copy_of

    bundle = s.bundle("a", "sh", "-c", "echo here > /tmp/x")
    copy_of(s.lower, bundle)
    s.run("a", rootfs=[])
    s.wait("a")
    s.delete("a")
    s.tell("kept", (bundle.path / "rootfs/tmp/x").read_text())


def a_root_of_every_kind(s: Session) -> None:
    lower, second = str(s.lower), s.folder / "second"
    (second / "tmp").mkdir(parents=True)
    kinds = {
        "bound": pb.Mount(type="bind", source=lower, options=["rbind", "rw"]),
        "readonly": pb.Mount(type="bind", source=lower, options=["rbind", "ro"]),
        "lowers": pb.Mount(
            type="overlay", source="overlay", options=[f"lowerdir={second}:{lower}"]
        ),
    }
    for name, mount in kinds.items():
        streams = s.streams(name)
        s.run(name, "sh", "-c", "touch /tmp/w && echo rw || echo ro", rootfs=[mount], **streams)
        s.wait(name)
        s.delete(name)
        s.tell(f"{name} is", s.outputs[f"{name}-out"].to_the_end())
        (s.lower / "tmp/w").unlink(missing_ok=True)
    s.tell("mounted", _mounted(s))


def no_such_checkpoint(s: Session) -> None:
    s.create("a", *SLEEP, checkpoint=f"{s.folder}/none")
    s.state("a")
    s.exec("a", "x", "true")
    s.call("Pause", pb.PauseRequest(id="a"))
    s.start("a")
    s.delete("a")


def _tell_metrics_v1(s: Session, stats: Any) -> None:
    from shim.proto.cgroups_v1_pb import Metrics

    metrics = unpack(stats, Metrics)
    s.tell("fields", sorted(f[1] for f in metrics.FIELDS if getattr(metrics, f[1])))
    assert metrics.memory is not None
    memory = sorted(f[1] for f in metrics.memory.FIELDS if getattr(metrics.memory, f[1]))
    # What the kernel counts for the moment may be zero; these may not.
    s.tell(
        "memory", [name for name in memory if name in ("cache", "rss", "usage", "inactive_file")]
    )
    assert metrics.memory.usage is not None
    assert metrics.cpu is not None
    assert metrics.cpu.usage is not None
    s.tell("limit", metrics.memory.usage.limit)
    s.tell("counted", bool(metrics.cpu.usage.total and metrics.memory.usage.usage))
    assert metrics.pids is not None
    s.tell("pids", metrics.pids.current)


def _tell_metrics_v2(s: Session, stats: Any) -> None:
    from shim.proto.cgroups_v2_pb import Metrics

    metrics = unpack(stats, Metrics)
    s.tell("fields", sorted(f[1] for f in metrics.FIELDS if getattr(metrics, f[1])))
    assert metrics.memory is not None
    assert metrics.cpu is not None
    assert metrics.pids is not None
    s.tell("limit", metrics.memory.usage_limit)
    s.tell("counted", bool(metrics.cpu.usage_usec and metrics.memory.usage and metrics.memory.file))
    s.tell("pids", metrics.pids.current)


def _limit(memory: int) -> Any:
    value = json.dumps({"memory": {"limit": memory}}).encode()
    return Any(type_url=RESOURCES, value=value)


def _memory_limit(s: Session, name: str) -> str:
    group = Path("/sys/fs/cgroup/memory", s.folder.name, name)
    if group.exists():
        return (group / "memory.limit_in_bytes").read_text().strip()
    return Path("/sys/fs/cgroup", s.folder.name, name, "memory.max").read_text().strip()


def _mounted(s: Session) -> list[str]:
    from bed.leaks import mount_points

    return mount_points(s.folder)
