"""What happens beside a container that booted cold: its snapshot is made, an artifact is pulled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fakes.pod import Pod

from shim.proto import events_pb as pb
from shim.task.container import Container

FOREVER = ("sleep", "1000")
AUTO = {"thaw.dev/snapshot": "auto", "thaw.dev/ready": "file:/ready"}
ARTIFACT = {"thaw.dev/snapshot": "r.example/a:1"}


class Group:
    """A cgroup that a process of the tests is not in."""

    def pids(self) -> list[int]:
        return []


def started(pod: Pod, notes: dict[str, str]) -> Container:
    pod.settings["policy.auto"] = "*"
    container = pod.create("c", *FOREVER, spec={"annotations": notes})
    group: Any = Group()
    container._cgroup = group
    pod.start("c")
    return container


def eventually(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_first_of_its_kind_is_snapshotted_once_it_is_warm(
    pod: Pod, plays: Any, logged: Callable[[], str]
) -> None:
    plays.fail("restore", "NoSuchSnapshot", "auto-1 is not there yet")
    plays.set("await", play="reply", reply={"name": "auto-1", "because": ""})
    plays.set("checkpoint", play="reply", reply={"frozen": 0.5, "refused": ""})
    container = started(pod, AUTO)
    assert container.init.pid > 0
    eventually(lambda: "snapshot made" in logged())
    assert plays.verbs == ["restore", "await", "checkpoint"]
    asked = plays.seen[1]
    assert asked["ready"] == {"kind": "file", "target": "/ready"}
    assert asked["pid"] == container.init.pid
    assert (plays.seen[2]["name"], plays.seen[2]["exit"]) == ("auto-1", False)
    assert plays.seen[2]["by"] == "auto"
    assert (asked["anew"], plays.seen[2]["replace"]) == (False, False)
    assert "level=warning" not in logged(), "a first boot is nothing to worry about"


def test_one_that_does_not_fit_any_longer_is_made_anew(
    pod: Pod, plays: Any, logged: Callable[[], str]
) -> None:
    plays.fail("restore", "Unfit", "this CPU lacks levitate")
    plays.set("await", play="reply", reply={"name": "auto-1", "because": ""})
    plays.set("checkpoint", play="reply", reply={"frozen": 0.5, "refused": ""})
    started(pod, AUTO)
    eventually(lambda: "snapshot made" in logged())
    assert plays.seen[1]["anew"] is True
    assert plays.seen[2]["replace"] is True


def test_a_restored_one_is_not(pod: Pod, plays: Any) -> None:
    plays.set("restore", play="restore", args=list(FOREVER))
    started(pod, AUTO)
    assert plays.verbs == ["restore"]


def test_a_first_boot_may_be_cold_whatever_happens_to_failures(pod: Pod, plays: Any) -> None:
    plays.fail("restore", "NoSuchSnapshot", "auto-1 is not there yet")
    plays.set("await", play="reply", reply={"name": "", "because": "somebody else is making it"})
    assert started(pod, {**AUTO, "thaw.dev/on-failure": "fail"}).init.pid > 0
    eventually(lambda: plays.verbs == ["restore", "await"])


def test_somebody_else_is_at_it(pod: Pod, plays: Any, logged: Callable[[], str]) -> None:
    plays.fail("restore", "NoSuchSnapshot", "auto-1 is not there yet")
    reply = {"name": "", "because": "somebody else is making auto-1"}
    plays.set("await", play="reply", reply=reply)
    started(pod, AUTO)
    eventually(lambda: "no snapshot made" in logged())
    assert "somebody else is making auto-1" in logged()
    assert plays.verbs == ["restore", "await"]


def test_the_container_ends_before_it_is_warm(pod: Pod, plays: Any) -> None:
    plays.fail("restore", "NoSuchSnapshot", "auto-1 is not there yet")
    plays.set("await", play="hang", child=str(pod.folder / "child"))
    started(pod, AUTO)
    eventually((pod.folder / "child").exists)
    pod.kill("c", 9)
    pod.wait("c").get()
    eventually(lambda: not _alive(int((pod.folder / "child").read_text())))
    pod.delete("c")
    pod.events.wait_for(pb.TaskDelete)


def test_a_failed_dump_is_logged_and_nothing_else(
    pod: Pod, plays: Any, logged: Callable[[], str]
) -> None:
    plays.fail("restore", "NoSuchSnapshot", "auto-1 is not there yet")
    plays.set("await", play="reply", reply={"name": "auto-1", "because": ""})
    plays.fail("checkpoint", "StoreFull", "no room")
    started(pod, AUTO)
    eventually(lambda: "could not make a snapshot" in logged())
    assert "no room" in logged()
    assert pod.state("c").status != 0


def test_an_artifact_is_pulled_for_the_next_one(
    pod: Pod, plays: Any, logged: Callable[[], str]
) -> None:
    pod.settings["registry.allow"] = "r.example"
    plays.set("pull", play="reply", reply={"id": "0123456789abcdef"})
    container = started(pod, ARTIFACT)
    assert container.restoration is None, "it does not wait"
    eventually(lambda: "msg=pulled" in logged() or 'msg="pulled"' in logged())
    assert plays.seen[0]["name"] == "r.example/a:1"


def test_waiting_for_an_artifact_is_part_of_the_restore(pod: Pod, plays: Any) -> None:
    pod.settings["registry.allow"] = "r.example"
    plays.set("restore", play="restore", args=list(FOREVER))
    started(pod, {**ARTIFACT, "thaw.dev/pull": "wait"})
    assert plays.verbs == ["restore"]
    assert (plays.seen[0]["snapshot"], plays.seen[0]["name"]) == ("", "r.example/a:1")


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
