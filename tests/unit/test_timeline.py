from __future__ import annotations

import json
import time

import pytest

from shim import trace
from shim.timeline import Span, Timeline


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock: its one item is what it shows."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_spans_in_the_order_in_which_they_ended(clock: list[float]) -> None:
    timeline = Timeline(began=100.0)
    with timeline.span("outer"):
        clock[0] += 1
        with timeline.span("inner"):
            clock[0] += 2
        clock[0] += 4
    assert [(span.name, span.start, span.seconds) for span in timeline.spans] == [
        ("inner", 1.0, 2.0),
        ("outer", 0.0, 7.0),
    ]
    assert timeline.as_dict() == {"inner": 2.0, "outer": 7.0}
    assert timeline.seconds("outer") == 7.0
    assert timeline.seconds("none") == 0


def test_a_step_that_ends_elsewhere(clock: list[float]) -> None:
    timeline = Timeline(began=100.0)
    clock[0] += 5
    timeline.note("step", 102.0)
    assert timeline.spans == [Span("step", 2.0, 3.0)]


def test_a_step_that_fails_is_measured_too(clock: list[float]) -> None:
    timeline = Timeline(began=100.0)

    def fail() -> None:
        with timeline.span("step"):
            clock[0] += 3
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - our own
        fail()
    assert timeline.seconds("step") == 3.0


def test_a_step_that_is_done_twice(clock: list[float]) -> None:
    timeline = Timeline(began=100.0)
    for _ in range(2):
        with timeline.span("step"):
            clock[0] += 1.23456
    assert timeline.seconds("step") == pytest.approx(2.46912)


def test_spans_to_be_handed_out(clock: list[float]) -> None:
    timeline = Timeline(began=100.0)
    with timeline.span("outer"):
        with timeline.span("inner"):
            clock[0] += 1.23456789
        clock[0] += 1
    assert timeline.as_list() == [
        {"name": "outer", "start": 0.0, "seconds": 2.234568},
        {"name": "inner", "start": 0.0, "seconds": 1.234568},
    ]
    assert trace.parse(json.dumps(timeline.as_list()), "x") == [
        Span("outer", 0.0, 2.234568),
        Span("inner", 0.0, 1.234568),
    ]
