"""Pods that ask for a snapshot, and what the audit log says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane
from bed.pod import Container
from workers import COMMAND, SNAPSHOT, Told, ask, booted_cold, outcome

PULL = "thaw.dev/pull"


@contextmanager
def asking(lane: Lane, name: str, **notes: str) -> Iterator[Container]:
    """A pod with a worker that asks for a snapshot; it has started, one way or the other.

    `notes` are annotations of Thaw's, with `_` for `-`.
    """
    more = {f"thaw.dev/{key.replace('_', '-')}": value for key, value in notes.items()}
    with lane.pod("asking", annotations={SNAPSHOT: name, **more}) as pod:
        yield pod.container("app", BUSYBOX_IMAGE, COMMAND).start()


def comes_back(lane: Lane, name: str, told: Told, **notes: str) -> None:
    """A worker is restored from `name`: it is the one that said `told` before its snapshot."""
    with asking(lane, name, on_failure="fail", **notes) as container:
        assert outcome(lane, container).message == "restored"
        assert ask(container) == Told(told.token, told.asked + 1)
        assert not booted_cold(container)


def boots_cold(lane: Lane, name: str, reason: str, **notes: str) -> str:
    """A worker boots cold instead, for that reason: the error's message."""
    with asking(lane, name, **notes) as container:
        line = outcome(lane, container)
        assert (line.message, line.fields["reason"]) == ("booting cold", reason), line
        container.wait_for_log("booted")
        assert line.fields["hint"]
        return line.fields["error"]


def audited(lane: Lane, event: str) -> list[dict[str, Any]]:
    """The lines of the audit log about that kind of event."""
    lines = lane.places.audit.read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]
