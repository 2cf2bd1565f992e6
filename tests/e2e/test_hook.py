"""The network hook of a restore: what follows if there is none, or it fails, or hangs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bed import fetch
from bed.lane import Lane
from gate import configured
from workers import SNAPSHOT, ask, boot, booted_cold, kept_snapshot, outcome

pytestmark = [pytest.mark.one_lane]

HOOKS = {
    "missing": ("", "cannot run the network hook", "network.hook"),
    "failing": ("#!/bin/sh\ncat > /dev/null; echo no carrier >&2; exit 3\n", "no carrier", "hook"),
    "hanging": ("#!/bin/sh\nexec sleep 1000\n", "was not done after 0.5 s", "network.timeout"),
}


@pytest.fixture(scope="module")
def snapshot(lane: Lane) -> Iterator[str]:
    with kept_snapshot(lane, "hooked", boot) as name:
        yield name


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_that_does_not_work(lane: Lane, snapshot: str, kind: str) -> None:
    text, said, hint = HOOKS[kind]
    hook = lane.places.folder / f"hook-{kind}"
    if text:
        hook.write_text(text)
        hook.chmod(0o755)
    # Only who hangs is not waited for: the others may take their time on a busy machine.
    seconds = 0.5 if kind == "hanging" else 30.0
    more = f'network.hook = "{hook}"\nnetwork.timeout = {seconds}\n'
    with (
        configured(lane, fetch.criu(), more),
        lane.pod(f"with-{kind}", annotations={SNAPSHOT: snapshot}) as pod,
    ):
        container = boot(pod)
        line = outcome(lane, container)
        assert (line.message, line.fields["reason"]) == ("booting cold", "RestoreFailed")
        assert said in line.fields["error"]
        assert hint in line.fields["hint"]
        assert booted_cold(container)
        assert ask(container).asked == 1
