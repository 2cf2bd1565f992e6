"""What happens beside a container that booted cold: its snapshot is made, an artifact is pulled."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any

import pytest
from fakes.cold import FOREVER, MADE, NAMED, POLITE, STUBBORN, ending, started
from fakes.pod import Pod
from fakes.settled import PATIENCE, alive, eventually

from shim.proto import events_pb as pb
from shim.task import aside

AUTO = {"thaw.dev/snapshot": "auto", "thaw.dev/ready": "file:/ready"}
ARTIFACT = {"thaw.dev/snapshot": "r.example/a:1"}


def test_the_first_of_its_kind_is_snapshotted_once_it_is_warm(
    pod: Pod, plays: Any, logged: Callable[[], str]
) -> None:
    plays.fail("restore", "NoSuchSnapshot", "auto-1 is not there yet")
    plays.set("await", play="reply", reply={"name": "auto-1", "because": ""})
    plays.set("checkpoint", play="reply", reply=MADE)
    container = started(pod, AUTO)
    assert container.init.pid > 0
    eventually(lambda: "snapshot made" in logged())
    assert plays.verbs == ["restore", "await", "checkpoint"]
    asked = plays.seen[1]
    assert asked["make"] == "auto"
    assert asked["ready"] == {"kind": "file", "target": "/ready"}
    assert asked["pid"] == container.init.pid
    assert (plays.seen[2]["name"], plays.seen[2]["exit"]) == ("auto-1", False)
    assert (plays.seen[2]["by"], plays.seen[2]["ends"]) == ("auto", False)
    assert (asked["anew"], plays.seen[2]["replace"]) == (False, False)
    assert "level=warning" not in logged(), "a first boot is nothing to worry about"


def test_a_snapshot_that_has_a_name(pod: Pod, plays: Any, logged: Callable[[], str]) -> None:
    plays.set("await", play="reply", reply={"name": "warm", "because": ""})
    plays.set("checkpoint", play="reply", reply=MADE)
    started(pod, NAMED)
    eventually(lambda: "snapshot made" in logged())
    assert plays.verbs == ["await", "checkpoint"]
    assert plays.seen[0]["make"] == "warm"
    assert (plays.seen[1]["name"], plays.seen[1]["by"]) == ("warm", "annotation")
    assert "frozen=0.500 quiet=0.700" in logged()


@pytest.mark.parametrize("wanted", ["warm", "auto", "other"])
def test_what_has_a_name_is_never_replaced(pod: Pod, plays: Any, wanted: str) -> None:
    """Whoever may name a snapshot could put something unfit in its place."""
    for name in ("warm", "other"):
        pod.snapshot(name)
    plays.fail("restore", "Unfit", "this CPU lacks levitate")
    plays.set("await", play="reply", reply={"name": "", "because": "warm is there"})
    started(pod, {**NAMED, "thaw.dev/snapshot": wanted})
    eventually(lambda: "await" in plays.verbs)
    assert plays.seen[-1]["anew"] is False


def test_another_derived_one_is_not_replaced_either(pod: Pod, plays: Any) -> None:
    pod.snapshot("warm")
    plays.fail("restore", "Unfit", "this CPU lacks levitate")
    plays.set("await", play="reply", reply={"name": "", "because": "auto-1 is there"})
    auto = {"thaw.dev/checkpoint": "auto", "thaw.dev/ready": "file:/ready"}
    started(pod, {**auto, "thaw.dev/snapshot": "warm"})
    eventually(lambda: "await" in plays.verbs)
    assert (plays.seen[-1]["make"], plays.seen[-1]["anew"]) == ("auto", False)


def test_the_worker_is_not_resumed(pod: Pod, plays: Any, logged: Callable[[], str]) -> None:
    """The snapshot is there all the same."""
    plays.set("await", play="reply", reply={"name": "warm", "because": ""})
    plays.set("checkpoint", play="reply", reply={**MADE, "unresumed": "http:1/up: no answer"})
    started(pod, NAMED)
    eventually(lambda: "snapshot made, its worker not resumed" in logged())
    assert "http:1/up: no answer" in logged()


def test_a_worker_that_was_lost_over_it(pod: Pod, plays: Any, logged: Callable[[], str]) -> None:
    """It is ended, and started anew in the same pod: that must not go on and on."""
    plays.set("await", play="reply", reply={"name": "warm", "because": ""})
    plays.fail("checkpoint", "GpuLost", "the worker is lost")
    notes = {**NAMED, "io.kubernetes.cri.container-name": "main"}
    started(pod, notes)
    eventually(lambda: "could not make a snapshot" in logged())
    asked = plays.verbs
    assert asked == ["await", "checkpoint"]
    started(pod, notes, name="again")
    eventually(lambda: "was lost over its snapshot" in logged())
    assert plays.verbs == asked
    started(pod, {**notes, "io.kubernetes.cri.container-name": "other"}, name="other")
    eventually(lambda: plays.verbs == asked * 2)


# What becomes of the worker

CONTRACT = {"thaw.dev/checkpoint": "warm", "thaw.dev/after-checkpoint": "exit"}
EXIT = {**NAMED, "thaw.dev/after-checkpoint": "exit"}
OBEDIENT = """
trap "exit 9" TERM
echo > "$0/ready-for-snapshot"
until [ -e "$0/snapshot-complete" ]; do sleep 0.02; done
exit 3
"""


def test_a_worker_of_the_contract_ends_by_itself(
    pod: Pod, plays: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "GRACE", 1000.0)
    assert ending(pod, plays, CONTRACT, OBEDIENT) == 3


def test_another_is_told_to_end(pod: Pod, plays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "GRACE", 1000.0)
    assert ending(pod, plays, EXIT, POLITE) == 9


@pytest.mark.parametrize("notes", [EXIT, CONTRACT])
def test_one_that_does_not_end(
    pod: Pod, plays: Any, monkeypatch: pytest.MonkeyPatch, notes: dict[str, str]
) -> None:
    monkeypatch.setattr(aside, "GRACE", 0.1)
    assert ending(pod, plays, notes, STUBBORN) == 128 + 9


def test_without_a_snapshot_it_does_not_end(
    pod: Pod, plays: Any, logged: Callable[[], str]
) -> None:
    plays.set("await", play="reply", reply={"name": "warm", "because": ""})
    plays.fail("checkpoint", "WorkerFailed", "no snapshot is made, it cannot be quiesced")
    started(pod, EXIT, "sh", "-c", POLITE, str(pod.folder / "control"))
    eventually(lambda: "it cannot be quiesced" in logged())
    assert not (pod.folder / "control/snapshot-complete").exists()
    assert "kill" not in pod.verbs()


@pytest.mark.parametrize("why", ["there", "failed", "denied", "missing"])
def test_a_worker_that_waits_in_vain_is_told_to_go_on(
    pod: Pod, plays: Any, logged: Callable[[], str], why: str
) -> None:
    """Not before it waits: who listens to the FIFO from then on would miss it."""
    plays.set("await", play="reply", reply={"name": "", "because": "warm is there"})
    notes = {**CONTRACT, "thaw.dev/snapshot": "missing"}
    if why == "failed":
        plays.fail("await", "StoreFull", "no room")
    elif why == "missing":
        del notes["thaw.dev/checkpoint"]
    elif why == "denied":
        notes["thaw.dev/snapshot"] = "auto"
        notes["io.kubernetes.cri.sandbox-namespace"] = "team"
        pod.settings.update({"policy.auto": "other", "policy.checkpoint": "other"})
    control = pod.folder / "control"
    started(pod, notes)
    wake = os.open(control / "wake", os.O_RDWR)
    assert not (control / "restore-complete").exists()
    (control / "ready-for-snapshot").touch()
    eventually((control / "restore-complete").exists)
    assert select.select([wake], [], [], PATIENCE)[0]
    assert os.read(wake, 64) == b"restore-complete\n"
    os.close(wake)
    assert not (control / "snapshot-complete").exists()
    assert pod.state("c").status != 0
    assert ("could not make" in logged()) == (why == "failed")


def test_one_that_ends_instead_is_not_waited_for(
    pod: Pod, plays: Any, logged: Callable[[], str]
) -> None:
    started(pod, {"thaw.dev/snapshot": "missing"})
    pod.kill("c", 9)
    pod.wait("c").get()
    pod.delete("c")
    assert plays.verbs == []
    assert not (pod.folder / "control/restore-complete").exists()
    assert "cannot see the worker" not in logged()


def test_one_that_does_not_fit_any_longer_is_made_anew(
    pod: Pod, plays: Any, logged: Callable[[], str]
) -> None:
    plays.fail("restore", "Unfit", "this CPU lacks levitate")
    plays.set("await", play="reply", reply={"name": "auto-1", "because": ""})
    plays.set("checkpoint", play="reply", reply=MADE)
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
    eventually(lambda: not alive(int((pod.folder / "child").read_text())))
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
