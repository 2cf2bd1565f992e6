"""When a container is registered of which a snapshot is made, and what signals do to the making."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes.cold import FOREVER, MADE, NAMED, POLITE, ending, started
from fakes.pod import Pod
from fakes.settled import alive, eventually

from shim.annotations import CHECKPOINT, REGISTER
from shim.errors import FailedPrecondition
from shim.task import aside
from shim.task.container import Container
from shim.task.dumping import BEGUN, mark
from shim.task.membership import Membership
from shim.task.state import RUNNING

SERVED = {REGISTER: "http:1/workers"}


class Begun:
    """What was there when a membership began; and whether it was known to be warm."""

    def __init__(self, plays: Any, logged: Callable[[], str], told: Callable[[], bool]) -> None:
        self._plays = plays
        self._logged = logged
        self._told = told
        self.seen: list[tuple[list[str], bool, bool]] = []
        self.late: list[bool] = []

    def __call__(self, _identity: object, **how: Any) -> None:
        self.late.append(how.get("late", False))
        made = 'msg="snapshot made"' in self._logged()
        self.seen.append((self._plays.verbs, made, self._told()))


@pytest.fixture
def begun(
    pod: Pod, plays: Any, logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> Begun:
    """Instead of a registry."""
    made = Begun(plays, logged, (pod.folder / "control/restore-complete").exists)
    monkeypatch.setattr(Membership, "begin", made)
    return made


def test_it_is_registered_when_its_snapshot_is_made(pod: Pod, plays: Any, begun: Begun) -> None:
    """Before, it is put to sleep and frozen; and what it serves would be in the snapshot."""
    plays.set("await", play="reply", reply={"name": "warm", "because": ""})
    plays.set("checkpoint", play="reply", reply=MADE)
    started(pod, {**NAMED, **SERVED})
    eventually(lambda: begun.seen != [])
    assert begun.seen == [(["await", "checkpoint"], True, False)]
    assert begun.late == [True]


@pytest.mark.parametrize("why", ["there", "failed", "not quiesced"])
@pytest.mark.parametrize("after", ["continue", "exit"])
def test_it_is_registered_if_none_is_made(
    pod: Pod, plays: Any, begun: Begun, why: str, after: str
) -> None:
    """Nobody may have asked it yet whether it is warm."""
    plays.set("await", play="reply", reply={"name": "", "because": "warm is there"})
    if why == "failed":
        plays.fail("await", "StoreFull", "no room")
    elif why == "not quiesced":
        plays.set("await", play="reply", reply={"name": "warm", "because": ""})
        plays.fail("checkpoint", "WorkerFailed", "no snapshot is made, it cannot be quiesced")
    started(pod, {**NAMED, **SERVED, "thaw.dev/after-checkpoint": after})
    eventually(lambda: begun.seen != [])
    tried = ["await", *(["checkpoint"] if why == "not quiesced" else [])]
    assert begun.seen == [(tried, False, False)]
    assert begun.late == [why == "not quiesced"]


def test_one_of_the_contract_is_registered_once_it_goes_on(
    pod: Pod, plays: Any, begun: Begun
) -> None:
    plays.set("await", play="reply", reply={"name": "", "because": "warm is there"})
    started(pod, {CHECKPOINT: "warm", **SERVED})
    eventually(lambda: plays.verbs == ["await"])
    (pod.folder / "control/ready-for-snapshot").touch()
    eventually(lambda: begun.seen != [])
    assert begun.seen == [(["await"], False, True)]
    assert begun.late == [True]


def test_one_that_ends_with_its_snapshot_is_not(
    pod: Pod, plays: Any, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "GRACE", 1000.0)
    assert ending(pod, plays, {**NAMED, **SERVED, "thaw.dev/after-checkpoint": "exit"}, POLITE) == 9
    assert begun.seen == []


@pytest.mark.parametrize("why", ["restored", "denied", "unasked"])
def test_without_a_snapshot_to_be_made_start_sees_to_it(
    pod: Pod, plays: Any, begun: Begun, why: str
) -> None:
    notes = {**SERVED, **(NAMED if why != "unasked" else {})}
    if why == "restored":
        pod.snapshot("warm")
        plays.set("restore", play="restore", args=list(FOREVER))
        notes["thaw.dev/snapshot"] = "warm"
    elif why == "denied":
        pod.settings["policy.checkpoint"] = ""
    started(pod, notes)
    assert len(begun.seen) == 1
    assert begun.late == [False]


# Signals

HARMLESS = 28  # SIGWINCH ends a server that handles it, and not what the tests run


def hung(pod: Pod, plays: Any, verb: str, notes: dict[str, str]) -> tuple[Container, int]:
    """A container whose engine does not answer that, and a child of the engine's."""
    pod.settings["log.level"] = "debug"
    child = pod.folder / "child"
    plays.set("await", play="reply", reply={"name": "warm", "because": ""})
    plays.set("resume", play="reply", reply={})
    plays.set(verb, play="hang", child=str(child))
    container = started(pod, {**NAMED, **notes})
    eventually(child.exists)
    return container, int(child.read_text())


WAKE = {"thaw.dev/resume": "http:8000/wake_up"}


@pytest.mark.parametrize(
    ("verb", "verbs"), [("await", ["await"]), ("checkpoint", ["await", "checkpoint", "resume"])]
)
def test_one_that_is_told_to_stop_is_not_snapshotted(
    pod: Pod,
    plays: Any,
    begun: Begun,
    logged: Callable[[], str],
    verb: str,
    verbs: list[str],
) -> None:
    """Those that come from it would have got the signal, too. Should it go on, it is awake."""
    _, child = hung(pod, plays, verb, {**WAKE, **SERVED})
    pod.kill("c", HARMLESS)
    eventually(lambda: 'msg="not done"' in logged())
    eventually(lambda: not alive(child))
    assert plays.verbs == verbs
    assert pod.state("c").status == RUNNING
    assert "could not make" not in logged(), "nothing to worry about"
    assert begun.seen == []


def test_criu_is_not_ended_by_a_stop(pod: Pod, plays: Any, logged: Callable[[], str]) -> None:
    """Its engine sees to it that what it has made gets no name."""
    container, child = hung(pod, plays, "checkpoint", {})
    mark(container.folder, BEGUN)
    pod.kill("c", HARMLESS)
    assert pod.node.reaper.kill(_parent(child), 9)
    eventually(lambda: "the engine process died" in logged())


def test_other_signals_say_nothing(pod: Pod, plays: Any, logged: Callable[[], str]) -> None:
    _, child = hung(pod, plays, "await", {})
    pod.kill("c", 17)
    assert pod.node.reaper.kill(_parent(child), 9)
    eventually(lambda: "the engine process died" in logged())


@pytest.mark.parametrize("verb", ["await", "checkpoint"])
def test_nothing_outlives_the_container(
    pod: Pod, plays: Any, logged: Callable[[], str], verb: str
) -> None:
    """Not even what puts it to sleep: that may be another container's server, which hangs."""
    _, child = hung(pod, plays, verb, WAKE)
    pod.kill("c", 9)
    pod.wait("c").get()
    eventually(lambda: not alive(child))
    pod.delete("c")
    assert "could not make" not in logged()


def test_a_delete_that_is_refused_ends_nothing(
    pod: Pod, plays: Any, logged: Callable[[], str]
) -> None:
    _, child = hung(pod, plays, "await", {})
    with pytest.raises(FailedPrecondition, match="cannot delete container c: it is running"):
        pod.delete("c")
    assert pod.node.reaper.kill(_parent(child), 9)
    eventually(lambda: "the engine process died" in logged())


def test_nor_does_it_leave_the_registry(
    pod: Pod, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on, and nobody would register it again."""
    left: list[int] = []
    container = started(pod, SERVED)
    # Asked of the container itself: the end that its exit brings may come after the Delete.
    monkeypatch.setattr(Membership, "end", lambda *_: left.append(container.state.status))
    assert len(begun.seen) == 1
    with pytest.raises(FailedPrecondition):
        pod.delete("c")
    assert left == []
    pod.kill("c", 9)
    pod.wait("c").get()
    pod.delete("c")
    assert left[0] == RUNNING, "before the signal"


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
