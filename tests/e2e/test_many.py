"""Pod after pod, and pods side by side, restored ones among them: none is lost, nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane
from workers import COMMAND, FAIL, SNAPSHOT, ask, boot, booted_cold, kept_snapshot

pytestmark = [pytest.mark.one_lane]

IN_A_ROW = 10
AT_ONCE = 10


@pytest.fixture(scope="module")
def worker(lane: Lane) -> Iterator[str]:
    with kept_snapshot(lane, "worker", boot) as name:
        yield name


def live(lane: Lane, number: int, snapshot: str) -> None:
    """A pod's whole life; every other one is restored."""
    notes = {SNAPSHOT: snapshot, **FAIL} if number % 2 else {}
    with lane.pod(f"many-{number}", annotations=notes) as pod:
        container = pod.container("app", BUSYBOX_IMAGE, COMMAND).start()
        if not notes:
            container.wait_for_log("booted")
        assert ask(container).asked == 1
        assert booted_cold(container) is not bool(notes)
        container.stop()
        assert container.wait() == 7


def test_pods_in_a_row(lane: Lane, worker: str) -> None:
    for number in range(IN_A_ROW):
        live(lane, number, worker)


def test_pods_at_once(lane: Lane, worker: str) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        lives = [pool.submit(live, lane, number, worker) for number in range(AT_ONCE)]
        for one in lives:
            one.result()
