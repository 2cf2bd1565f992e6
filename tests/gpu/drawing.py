"""A picture of restores: one bar for each, in the colours of their phases. SVG, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_LEFT, _WIDTH, _BAR, _GAP, _APART, _TOP, _KEY = 250, 600, 22, 5, 14, 34, 20
_FONT = 'font-family="sans-serif" font-size="12"'
_COLOURS = {
    "pod": "#9aa5b1",
    "create": "#b8c0c8",
    "start, other": "#d5dae0",
    "plan, files": "#7f9fbf",
    "CRIU and fill": "#3b78b8",
    "CUDA restore": "#5a9e3e",
    "unlock": "#2f6b1f",
    "GPU memory": "#8a5fb0",
    "adopt": "#e0a030",
    "resume, canary": "#c97a2b",
    "first token": "#c0473a",
    "CRIU": "#3b78b8",
}


class Bar(NamedTuple):
    """One restore: its name, and its phases with their seconds, in order."""

    name: str
    phases: Sequence[tuple[str, float]]
    apart: bool = False  # from the one above it

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.phases)


def svg(bars: Sequence[Bar], title: str) -> str:
    """The picture; the same bars make the same text."""
    longest = max((bar.seconds for bar in bars), default=0.0) or 1.0
    scale = _WIDTH / longest
    named = [name for name in _COLOURS if any(_has(bar, name) for bar in bars)]
    *tops, below = _tops(bars)
    height = below + 24 + _KEY * ((len(named) + 3) // 4) + 10
    width = _LEFT + _WIDTH + 70
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {_FONT}>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
        *_axis(longest, scale, below),
    ]
    for bar, top in zip(bars, tops, strict=True):
        parts += _bar(bar, top, scale)
    for number, name in enumerate(named):
        x, y = 10 + 220 * (number % 4), below + 30 + _KEY * (number // 4)
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{_COLOURS[name]}"/>')
        parts.append(f'<text x="{x + 18}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _tops(bars: Sequence[Bar]) -> list[int]:
    """Where each of them begins, and where the last one's gap ends."""
    found: list[int] = []
    y = _TOP
    for bar in bars:
        y += _APART if bar.apart and found else 0
        found.append(y)
        y += _BAR + _GAP
    return [*found, y]


def _bar(bar: Bar, y: float, scale: float) -> list[str]:
    middle = y + _BAR / 2 + 4
    parts = [f'<text x="{_LEFT - 8}" y="{middle}" text-anchor="end">{escape(bar.name)}</text>']
    x = float(_LEFT)
    for name, seconds in bar.phases:
        wide = seconds * scale
        if wide > 0:
            told = f"<title>{escape(name)}: {seconds:.3f} s</title>"
            place = f'x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{_BAR}"'
            parts.append(f'<rect {place} fill="{_COLOURS.get(name, "#888888")}">{told}</rect>')
        x += wide
    parts.append(f'<text x="{x + 6:.1f}" y="{middle}">{bar.seconds:.2f} s</text>')
    return parts


def _axis(longest: float, scale: float, below: float) -> list[str]:
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 60, 3600) if longest / step <= 10)
    parts = []
    for number in range(int(longest / step) + 1):
        x = _LEFT + number * step * scale
        parts.append(
            f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{below}" stroke="#dddddd"/>'
        )
        parts.append(
            f'<text x="{x:.1f}" y="{below + 12}" text-anchor="middle">{number * step:g}</text>'
        )
    return parts


def _has(bar: Bar, name: str) -> bool:
    return any(phase == name and seconds > 0 for phase, seconds in bar.phases)
