"""Spans as a table, a drawing and a trace."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from shim import trace
from shim.errors import Unfit
from shim.timeline import Span

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "cli"
SPANS = [
    Span("survey", 0.0, 0.25),
    Span("pages", 0.5, 1.0),
    Span("dump", 0.25, 1.75),
    Span("difference", 0.75, 0.5),
    Span("index", 2.0, 2.0),
]


def test_nested_below_what_they_are_a_part_of() -> None:
    assert [(span.name, depth) for span, depth in trace.nested(SPANS)] == [
        ("survey", 0),
        ("dump", 0),
        ("pages", 1),
        ("difference", 2),
        ("index", 0),
    ]


def test_what_overlaps_is_no_part() -> None:
    found = trace.nested([Span("a", 0, 2), Span("b", 1, 2), Span("c", 1.5, 0.5)])
    assert [depth for _, depth in found] == [0, 0, 1]


def test_bars_on_one_scale() -> None:
    assert [row[3] for row in trace.rows(SPANS, 8)] == ["▌", "███▌", " ██", " █", "    ████"]
    assert [row[3] for row in trace.rows(SPANS, 8, ascii=True)] == [
        "#",
        "####",
        " ##",
        " #",
        "    ####",
    ]
    assert trace.rows(SPANS, 8)[2][:3] == ["  pages", "0.500", "1.000"]


@pytest.mark.parametrize("spans", [[], [Span("nothing", 0, 0)]])
def test_nothing_took_any_time(spans: list[Span]) -> None:
    assert len(trace.rows(spans)) == len(spans)
    ET.fromstring(trace.svg(spans, "none"))
    assert len(trace.trace(spans, "none")["traceEvents"]) == 1 + 2 * len(spans)


def test_a_trace_has_no_two_that_cross_in_one_thread() -> None:
    crossing = [Span("a", 0, 2), Span("b", 1, 2), Span("c", 2.5, 2), Span("in b", 1.5, 0.25)]
    events = [e for e in trace.trace(crossing, "t")["traceEvents"] if e["ph"] == "X"]
    threads = {event["name"]: event["tid"] for event in events}
    assert threads == {"a": 1, "b": 2, "in b": 1, "c": 1}
    assert {e["name"]: (e["ts"], e["dur"]) for e in events}["c"] == (2_500_000, 2_000_000)


def test_the_trace_is_the_golden_one() -> None:
    found = json.dumps(trace.trace(SPANS, "thaw: one"), indent=1) + "\n"
    assert found == (GOLDEN / "trace.json").read_text()


def test_the_drawing_is_the_golden_one() -> None:
    drawing = trace.svg(SPANS, "thaw: one <&>")
    assert drawing == (GOLDEN / "timeline.svg").read_text()
    root = ET.fromstring(drawing)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:6] == ["thaw: one <&>", "0 s", "1 s", "2 s", "3 s", "4 s"]


def test_names_cannot_leave_the_drawing() -> None:
    drawing = trace.svg([Span("</svg><script>\x1b\x00", 0, 1)], '"')
    assert "<script>" not in drawing
    ET.fromstring(drawing)


@pytest.mark.parametrize(
    "around", ["%s", '{"spans": %s}', '{"config": {"spans": %s}, "digest": ""}']
)
def test_read_back(around: str) -> None:
    items = [{"name": s.name, "start": s.start, "seconds": s.seconds} for s in SPANS]
    assert trace.parse(around % json.dumps(items), "x") == SPANS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "1",
        "{}",
        '{"spans": 1}',
        "[1]",
        '[{"name": 1, "start": 0, "seconds": 0}]',
        '[{"name": "a", "start": -1, "seconds": 0}]',
        '[{"name": "a", "start": 0, "seconds": NaN}]',
        '[{"name": "a", "start": 0, "seconds": Infinity}]',
        '[{"name": "a", "start": true, "seconds": 1}]',
        '[{"name": "a", "start": 0}]',
    ],
)
def test_what_is_no_spans(text: str) -> None:
    with pytest.raises(Unfit, match=r"some\.json"):
        trace.parse(text, "some.json")
