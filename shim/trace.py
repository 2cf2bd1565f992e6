"""Spans as people look at them: a table with bars, an SVG, a trace for Perfetto.

Spans come from documents that others wrote: they are read as untrusted input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from shim.errors import Unfit
from shim.timeline import Span

HEADS = ("STEP", "START", "SECONDS", "")
_MOST = 10_000  # spans
_LONGEST = 1e9  # seconds
_SLACK = 1e-5  # seconds: starts and lengths are rounded
_EIGHTHS = " ▏▎▍▌▋▊▉█"

# The drawing, in pixels.
_LEFT, _TOP, _ROW, _BAR, _CHART, _RIGHT = 16, 56, 26, 16, 640, 84
_LETTER = 7.2  # of a label, on average
_LABEL = 40  # letters
_COLOURS = ("#2f6f9f", "#5a9bc5", "#8fbfdc", "#b9d7ea")  # by depth
_STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1d2730}"
    ".title{font-size:15px;font-weight:600}.dim{fill:#6b7883}"
    ".grid{stroke:#dfe5ea;stroke-width:1}"
)


def parse(text: str | bytes, path: str) -> list[Span]:
    """Spans from JSON: a list of them, or an object with `spans`, also one level down.

    So config documents, replies of the engine and what `thaw show -o json` prints are all read.
    Raises Unfit naming `path`.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"{path}: {str(error)[:200]}", hint="JSON with spans is meant") from error
    found = _spans(document)
    if found is None or len(found) > _MOST:
        raise Unfit(
            f"{path} has no spans, or too many", hint='[{"name": …, "start": …, "seconds": …}, …]'
        )
    return [_span(item, path) for item in found]


def rows(spans: Sequence[Span], width: int = 40, *, ascii: bool = False) -> list[list[str]]:
    """Cells under HEADS: name (indented below what it is a part of), start, length, bar."""
    total = _total(spans)
    return [
        [
            "  " * depth + span.name,
            f"{span.start:.3f}",
            f"{span.seconds:.3f}",
            _bar(span, total, width, ascii=ascii),
        ]
        for span, depth in nested(spans)
    ]


def nested(spans: Sequence[Span]) -> list[tuple[Span, int]]:
    """The spans by when they began, each with the number of others that it is a part of."""
    found: list[tuple[Span, int]] = []
    around: list[float] = []  # ends
    for span in sorted(spans, key=lambda span: (span.start, -span.seconds)):
        end = span.start + span.seconds
        around = [other for other in around if other + _SLACK >= end and other > span.start]
        found.append((span, len(around)))
        around.append(end)
    return found


def trace(spans: Sequence[Span], title: str) -> dict[str, Any]:
    """A document in the Trace Event Format: complete events, times in microseconds.

    Events of one thread must not overlap unless one is within the other: each that does gets the
    next thread that is free.
    """
    lanes: list[list[Span]] = []
    events: list[dict[str, Any]] = [_metadata("process_name", 0, title)]
    for span in sorted(spans, key=lambda span: (span.start, -span.seconds)):
        lane = next((n for n, taken in enumerate(lanes) if _fits(span, taken)), len(lanes))
        if lane == len(lanes):
            lanes.append([])
            events.append(_metadata("thread_name", lane + 1, f"steps {lane + 1}"))
        lanes[lane].append(span)
        events.append(
            {
                "name": span.name,
                "cat": "thaw",
                "ph": "X",
                "ts": round(span.start * 1e6),
                "dur": round(span.seconds * 1e6),
                "pid": 1,
                "tid": lane + 1,
            }
        )
    return {"displayTimeUnit": "ms", "traceEvents": events}


def svg(spans: Sequence[Span], title: str) -> str:
    """A drawing: a row for each span, on a scale of seconds."""
    ordered = nested(spans)
    total = _total(spans)
    longest = max((min(len(span.name), _LABEL) + 2 * depth for span, depth in ordered), default=0)
    labels = _LEFT + round(_LETTER * longest) + 12
    bottom = _TOP + _ROW * len(ordered)
    width, height = labels + _CHART + _RIGHT, bottom + 16
    sizes = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {sizes} role="img">',
        f"<title>{_text(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text class="title" x="{_LEFT}" y="24">{_text(title)}</text>',
        *_grid(total, labels, bottom),
    ]
    for number, (span, depth) in enumerate(ordered):
        lines.extend(_drawn(span, depth, _TOP + _ROW * number, labels, _CHART / total))
    return "\n".join([*lines, "</svg>", ""])


def _drawn(span: Span, depth: int, top: int, left: int, scale: float) -> list[str]:
    start, length = left + span.start * scale, max(span.seconds * scale, 1.5)
    middle = top + _ROW / 2 + 4
    colour = _COLOURS[min(depth, len(_COLOURS) - 1)]
    name = _text(span.name if len(span.name) <= _LABEL else span.name[: _LABEL - 1] + "…")
    box = f'x="{start:.1f}" y="{top + (_ROW - _BAR) / 2:g}" width="{length:.1f}" height="{_BAR}"'
    after = f'x="{start + length + 6:.1f}" y="{middle:g}"'
    return [
        f'<text x="{_LEFT + 14 * depth}" y="{middle:g}">{name}</text>',
        f'<rect {box} rx="2" fill="{colour}"/>',
        f'<text class="dim" {after}>{span.seconds:.3f} s</text>',
    ]


def _grid(total: float, left: int, bottom: int) -> list[str]:
    lines = []
    step = _step(total)
    for number in range(math.floor(total / step + 1e-9) + 1):
        x = left + number * step * _CHART / total
        lines.append(
            f'<line class="grid" x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{bottom}"/>'
        )
        lines.append(
            f'<text class="dim" x="{x:.1f}" y="{_TOP - 10}" text-anchor="middle">'
            f"{number * step:g} s</text>"
        )
    return lines


def _step(total: float) -> float:
    """The distance of two lines of the grid: 1, 2 or 5 times a power of ten; four to ten lines."""
    power = 10.0 ** math.floor(math.log10(total / 4))
    return max(power * factor for factor in (1, 2, 5) if power * factor <= total / 4 * 1.000001)


def _bar(span: Span, total: float, width: int, *, ascii: bool) -> str:
    """A bar on a scale of `width` letters: whole letters before it, eighths at its end."""
    begin = min(math.floor(span.start / total * width), width - 1)
    length = span.seconds / total * width
    if ascii:
        return " " * begin + "#" * max(1, round(length))
    full, part = divmod(max(1, round(length * 8)), 8)
    return " " * begin + "█" * full + (_EIGHTHS[part] if part else "")


def _total(spans: Sequence[Span]) -> float:
    return max((span.start + span.seconds for span in spans), default=0.0) or 1e-6


def _fits(span: Span, taken: Sequence[Span]) -> bool:
    """Whether it is after, or within, all that began before it."""
    end = span.start + span.seconds
    return all(
        other.start + other.seconds <= span.start + _SLACK
        or end <= other.start + other.seconds + _SLACK
        for other in taken
    )


def _metadata(name: str, thread: int, value: str) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": 1, "tid": thread, "args": {"name": value}}


def _text(text: str) -> str:
    # XML has no way to write most control characters.
    return escape("".join(c if c.isprintable() else "�" for c in text))


def _spans(document: object) -> list[Any] | None:
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        return None
    for holder in (document, *document.values()):
        if isinstance(holder, dict) and isinstance(holder.get("spans"), list):
            return list(holder["spans"])
    return None


def _span(item: object, path: str) -> Span:
    if isinstance(item, dict):
        name = item.get("name")
        times: list[Any] = [item.get("start"), item.get("seconds")]
        if isinstance(name, str) and all(map(_is_time, times)):
            return Span(name[:200], *map(float, times))
    raise Unfit(
        f"{path}: something is no span", hint='{"name": …, "start": …, "seconds": …} in seconds'
    )


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _LONGEST
