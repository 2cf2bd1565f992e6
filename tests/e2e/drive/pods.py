"""Scripts about several processes and containers in one shim, and the order of what is told."""

from __future__ import annotations

from typing import Any

from drive.session import KILL, TERM, Session

SLEEP = ("sleep", "1000")


def a_shared_pid_namespace(s: Session) -> None:
    """Without a pid namespace of its own, init's end must end the others; init's exit is last."""
    bundle = s.bundle("a", "sh", "-c", "sleep 1000 & exec sleep 1000")
    linux: dict[str, Any] = bundle.spec["linux"]
    linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "pid"]
    s.run("a")
    for name in ("x", "y"):
        s.exec("a", name, *SLEEP)
        s.start("a", name)
    waiters = [s.waiting("a", name) for name in ("x", "y")]
    s.kill("a", KILL)
    s.wait("a")
    s.tell("execs", [waiter.result(60).exit_status for waiter in waiters])
    s.state("a", "x")
    lines = s.sink.wait_for_line("exit a 137")
    s.tell("exits", (sorted(lines[-3:-1]), lines[-1]))
    s.delete("a")


def containers_come_and_go(s: Session) -> None:
    names = ["a", "b", "c"]
    for name in names:
        s.run(name, *SLEEP)
    s.tell("one shim", len({s.shim.start(s.bundles[name].path, name) for name in names}))
    s.end("b")
    s.run("d", *SLEEP)
    s.state("a")
    for name in ("a", "d", "c"):
        s.wait_for_program(name, "sleep")  # runc's own first process would end at TERM
        s.kill(name, TERM)
        s.kill(name, KILL)
        s.wait(name)
    for name in ("d", "c", "a"):
        s.delete(name)
    s.run("e", *SLEEP)  # nobody has asked for Shutdown
    s.end("e")
    s.tell_events("delete e")


def a_program_of_no_length(s: Session) -> None:
    """Containers that end at once: start comes before exit, and there is one exit."""
    for number in range(5):
        name = f"a{number}"
        s.run(name, "true")
        s.wait(name)
        s.delete(name)
    s.tell_events("delete a4")
