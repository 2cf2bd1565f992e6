"""Every state and every verb: what is allowed calls what it should, what is not says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shim.errors import FailedPrecondition, NotFound, RuntimeFailed
from shim.task import state as states
from shim.task.state import (
    CREATED,
    PAUSED,
    PAUSING,
    RUNNING,
    STOPPED,
    Created,
    CreatedFromSnapshot,
    Deleted,
    Paused,
    Pausing,
    Restoring,
    Running,
    State,
    Stopped,
)

VERBS: dict[str, Callable[[State], None]] = {
    "start": lambda state: state.start(None),
    "pause": lambda state: state.pause(),
    "resume": lambda state: state.resume(),
    "update": lambda state: state.update(b"{}"),
    "exec in": lambda state: state.check_exec(),
    "checkpoint": lambda state: state.check_checkpoint(),
    "kill": lambda state: state.kill(15, False),
    "delete": lambda state: state.delete(),
}

# state → the verbs that it allows, with what they do to the container
ALLOWED: dict[type[State], dict[str, list[str]]] = {
    Created: {
        "start": ["introduce", "runc.start", "become Running"],
        "update": ["run_update"],
        "exec in": [],
        "kill": ["runc.kill 15 everyone=False"],
        "delete": ["run_delete force=True"],
    },
    CreatedFromSnapshot: {
        "start": ["start_from_snapshot"],
        "kill": ["cancel_restore", "stop_unstarted 143"],
        "delete": ["cancel_restore", "run_delete force=True"],
    },
    Restoring: {"kill": ["cancel_restore"]},
    Running: {
        "pause": ["runc.pause", "become Paused"],
        "update": ["run_update"],
        "exec in": [],
        "checkpoint": [],
        "kill": ["runc.kill 15 everyone=False"],
    },
    Pausing: {"update": ["run_update"], "kill": ["runc.kill 15 everyone=False"]},
    Paused: {
        "resume": ["runc.resume", "become Running"],
        "update": ["run_update"],
        "checkpoint": [],
        "kill": ["runc.kill 15 everyone=False"],
    },
    Stopped: {"delete": ["run_delete force=False"]},
    Deleted: {},
}

# refusals that are not FailedPrecondition, because containerd tolerates NotFound from Kill
NOT_FOUND = {(Stopped, "kill"), *((Deleted, verb) for verb in VERBS)}

CASES = [(state, verb) for state in ALLOWED for verb in VERBS]


class Container:
    """Writes down what is asked of it."""

    id = "c1"
    shares_pids = False

    def __init__(self) -> None:
        self.done: list[str] = []
        self.state: Any = None
        self.failing = ""

    @property
    def runc(self) -> Any:
        return Recorder(self, "runc.")

    @property
    def exits(self) -> Container:
        return self

    def become(self, state: type[State]) -> None:
        self.done.append(f"become {state.__name__}")

    def __getattr__(self, name: str) -> Any:
        return getattr(Recorder(self, ""), name)


class Recorder:
    def __init__(self, container: Container, prefix: str) -> None:
        self._container = container
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        def call(*args: object, **named: object) -> None:
            words = [a for a in map(str, args) if a not in ("None", "b'{}'")]
            words += [f"{key}={value}" for key, value in named.items()]
            self._container.done.append(" ".join([self._prefix + name, *words]))
            if self._container.failing == self._prefix + name:
                raise RuntimeFailed("on purpose")

        return call


def in_state(kind: type[State]) -> tuple[State, Container]:
    container = Container()
    container.state = state = kind(container)  # type: ignore[arg-type]
    return state, container


def test_every_state_is_in_the_table() -> None:
    leaves = {
        value
        for name, value in vars(states).items()
        if isinstance(value, type) and issubclass(value, State) and not name.startswith("_")
    }
    assert leaves - {State} == set(ALLOWED)


@pytest.mark.parametrize(("kind", "verb"), CASES, ids=[f"{s.__name__}-{v}" for s, v in CASES])
def test_a_verb_in_a_state(kind: type[State], verb: str) -> None:
    state, container = in_state(kind)
    if verb in ALLOWED[kind]:
        VERBS[verb](state)
        assert container.done == ALLOWED[kind][verb]
        return
    error = NotFound if (kind, verb) in NOT_FOUND else FailedPrecondition
    with pytest.raises(error) as refused:
        VERBS[verb](state)
    if error is FailedPrecondition:
        assert str(refused.value) == f"cannot {verb} container c1: it is {kind.word}"
    else:
        assert "container c1" in str(refused.value)
    assert container.done == []
    assert container.state is state


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (Created, CREATED),
        (CreatedFromSnapshot, CREATED),
        (Restoring, CREATED),
        (Running, RUNNING),
        (Pausing, PAUSING),
        (Paused, PAUSED),
        (Stopped, STOPPED),
    ],
)
def test_what_containerd_hears(kind: type[State], status: int) -> None:
    assert kind.status == status
    assert (CREATED, RUNNING, STOPPED, PAUSED, PAUSING) == (1, 2, 3, 4, 5)


def test_a_start_that_fails_is_refused_for_good() -> None:
    state, container = in_state(Created)
    container.failing = "runc.start"
    with pytest.raises(RuntimeFailed):
        state.start(None)
    assert container.done == ["introduce", "runc.start", "refuse_start"]


def test_while_it_is_being_paused() -> None:
    state, container = in_state(Running)
    seen = []
    container.become = lambda state: seen.append(type(container.state))  # type: ignore[method-assign]
    state.pause()
    assert seen == [Pausing]


def test_a_pause_that_fails_goes_back() -> None:
    state, container = in_state(Running)
    container.failing = "runc.pause"
    with pytest.raises(RuntimeFailed):
        state.pause()
    assert container.done == ["runc.pause", "become Running"]


def test_a_resume_that_fails_stays() -> None:
    state, container = in_state(Paused)
    container.failing = "runc.resume"
    with pytest.raises(RuntimeFailed):
        state.resume()
    assert container.done == ["runc.resume"]


def test_what_remains_of_a_shared_pid_namespace_can_be_killed() -> None:
    state, container = in_state(Stopped)
    container.shares_pids = True
    state.kill(9, True)
    assert container.done == ["runc.kill 9 everyone=True"]
    with pytest.raises(NotFound):
        state.kill(9, False)


def test_a_start_from_a_snapshot_can_be_cancelled_meanwhile() -> None:
    state, container = in_state(CreatedFromSnapshot)
    state.start(None)
    assert isinstance(container.state, Restoring)
