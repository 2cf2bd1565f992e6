"""The shim against containerd's own runc shims: one script of calls, three tales, compared.

Where ours is different on purpose, DELIBERATE says so; any other difference fails, and so does an
entry that no longer holds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from bed import fetch
from drive import execs, lifecycle, pods
from drive.session import Session, driven
from drive.shim import Kind

Script = Callable[[Session], None]


class Deliberate(NamedTuple):
    """A difference that is meant: what they tell, what we tell, and why."""

    theirs: str
    ours: str
    reason: str


# Theirs has no class for what a state refuses (gRPC: Unknown). Ours has, so that containerd and
# people can tell a wrong moment from a failing runtime; containerd takes neither for "gone".
WRONG_STATE = Deliberate("Unknown", "FailedPrecondition", "a verb that the state refuses is named")
NOT_THERE = Deliberate("Unknown", "NotFound", "what is not there (any more) is named")
MALFORMED = Deliberate("Unknown", "InvalidArgument", "a request that can never work is named")
TAKEN = Deliberate("Unknown", "AlreadyExists", "a second container of one id is not even tried")
KILLED = Deliberate(
    "some exited_at=none",
    "some exit_status=137 exited_at=some",
    "Delete of a created container kills its init, and says so",
)
NEVER_RAN = Deliberate(
    "pid=none exited_at=none",
    "pid=none exited_at=some",
    "the year 1 is no time: what never ran ended when it was deleted",
)
REFUSED_INIT = Deliberate(
    "pid=none exited_at=none",
    "pid=none exit_status=137 exited_at=some",
    "a container whose Start was refused did not end well",
)
REFUSED_EXEC = "an exec that could not be started did not end well: 255, not 0"

DELIBERATE: dict[str, dict[str, Deliberate]] = {
    "a_whole_life": {
        "Kill a #3": Deliberate("ok", "NotFound", "so says runc from 1.2 on, `--all` or not"),
        "Start a #2": WRONG_STATE,
    },
    "killed_before_start": {"Start a": WRONG_STATE},
    "started_twice": {"Start a #2": WRONG_STATE},
    "created_twice": {"Create a #2": TAKEN},
    "deleted_at_every_stage": {
        "Delete created": KILLED,
        "Delete running": WRONG_STATE,
        "Delete paused": WRONG_STATE,
    },
    "paused_and_resumed": dict.fromkeys(
        [
            *("Pause a", "Resume a", "Resume a #2", "Pause a #3", "Start a #2", "Pause a #5"),
            "Resume a #4",
        ],
        WRONG_STATE,
    ),
    "updated": {"Start a #2": WRONG_STATE, "Update a #6": WRONG_STATE},
    "no_such_checkpoint": {
        "Exec a/x": WRONG_STATE,
        "Pause a": WRONG_STATE,
        "Delete a": REFUSED_INIT,
    },
    "an_execs_life": {
        "Start a/x #2": WRONG_STATE,
        "ResizePty a/x #2": NOT_THERE,
        "Delete a/x #3": NEVER_RAN,
        "CloseIO a/unknown": NOT_THERE,
    },
    "exec_statuses": {"Delete a/signalled": WRONG_STATE},
    "an_exec_that_cannot_start": {
        "waiter": Deliberate("0", "255", REFUSED_EXEC),
        "State a/x": Deliberate("exited_at=none", "exit_status=255 exited_at=some", REFUSED_EXEC),
        "Wait a/x": Deliberate("exited_at=none", "exit_status=255 exited_at=some", REFUSED_EXEC),
        "Delete a/x": Deliberate("exited_at=none", "exit_status=255 exited_at=some", REFUSED_EXEC),
    },
    "exec_while_paused": {"Exec a/refused": WRONG_STATE, "Delete a/added": NEVER_RAN},
    "exec_after_the_end": {"Exec a/late": WRONG_STATE, "Delete a/added": NEVER_RAN},
    "streams_that_are_not_there": {"Create b": MALFORMED},
}

# Where 1.6 itself differs from 2.x: containerd#10589 (the order of exits; execs after the end).
AS_2_X_ONLY = {"a_shared_pid_namespace", "exec_after_the_end"}


def scripts(module: ModuleType) -> dict[str, Script]:
    """The scripts of a module: its public functions."""
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
        if not name.startswith("_")
    }


SCRIPTS = scripts(lifecycle) | scripts(execs) | scripts(pods)


@pytest.fixture(scope="module")
def references() -> list[Kind]:
    program = "containerd-shim-runc-v2"
    return [
        Kind(f"runc-{version}", fetch.containerd(version) / program) for version in ("1.6", "2.x")
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_tells_the_same(name: str, lower: Path, references: list[Kind], ours: Kind) -> None:
    told = tale(ours, lower, SCRIPTS[name])
    for reference in references:
        if reference.name == "runc-1.6" and name in AS_2_X_ONLY:
            continue
        theirs = tale(reference, lower, SCRIPTS[name])
        wanted = expected(theirs, DELIBERATE.get(name, {}))
        assert told == wanted, f"{reference.name} tells otherwise"


def expected(theirs: dict[str, str], meant: dict[str, Deliberate]) -> dict[str, str]:
    """What we are to tell; fails if the reference does not tell what a difference is meant from."""
    wanted = dict(theirs)
    for label, entry in meant.items():
        assert entry.theirs in wanted[label], f"{label} is no longer different: {entry.reason}"
        wanted[label] = wanted[label].replace(entry.theirs, entry.ours)
    return wanted


def tale(kind: Kind, lower: Path, script: Script) -> dict[str, str]:
    """What a shim tells of a script."""
    with driven(kind, lower) as session:
        script(session)
        return dict(session.tale)
