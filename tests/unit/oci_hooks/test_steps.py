"""Every step of a hook is timed, has a limit and names itself when it fails."""

from __future__ import annotations

import signal
import time

import pytest
from fakes.settled import PATIENCE

from oci_hooks import steps as module
from oci_hooks.steps import Steps
from shim.errors import DeadlineExceeded, FailedPrecondition, Unavailable


def test_what_was_done() -> None:
    steps = Steps(100)
    with steps.step("one", 100) as step:
        step.detail = "said"
        time.sleep(0.01)
    with steps.step("two", 100):
        pass
    steps.warn("odd")
    one, two = steps.report.steps
    assert (one["name"], one["detail"], two["name"], two["detail"]) == ("one", "said", "two", "")
    assert 0.01 <= one["seconds"] < PATIENCE > two["seconds"]
    assert steps.report.warnings == ["odd"]


def test_a_reason_and_the_name() -> None:
    steps = Steps(5)
    with pytest.raises(FailedPrecondition, match=r"^one: why$"), steps.step("one", 1):
        raise FailedPrecondition("why")
    with pytest.raises(Unavailable, match=r"^two: \[Errno 2\]"), steps.step("two", 1):
        open("/none")
    with pytest.raises(Unavailable, match=r"^three: 'x'$"), steps.step("three", 1):
        raise KeyError("x")
    assert steps.report.steps == []


@pytest.mark.parametrize(("whole", "own"), [(100, 0.05), (0.05, 100)])
def test_a_wait_that_is_over(whole: float, own: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE", PATIENCE)  # it is not held up until the alarm comes
    steps = Steps(whole)
    began = time.monotonic()

    def forever() -> None:
        with steps.step("slow", own) as step:
            while True:
                step.wait("no carrier")

    with pytest.raises(DeadlineExceeded, match=r"^slow: no carrier$"):
        forever()
    assert 0.05 <= time.monotonic() - began < PATIENCE


def test_a_step_that_hangs() -> None:
    before = signal.getsignal(signal.SIGALRM)
    left = signal.setitimer(signal.ITIMER_REAL, 1000)
    with (
        pytest.raises(DeadlineExceeded, match=r"^hang: not done after \d+\.\d s$"),
        Steps(0.02).step("hang", 100),
    ):
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) is before
    assert 900 < signal.setitimer(signal.ITIMER_REAL, *left)[0] < 1000, "the caller's alarm is kept"
