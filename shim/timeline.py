"""Spans: how long each step of a checkpoint or a restore took. Logs and benchmarks read them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from shim.lean.values import Value


class Span(Value):
    """One step: seconds since the timeline began, and how long it took."""

    name: str
    start: float
    seconds: float


@dataclass
class Timeline:
    """The spans of one run, in the order in which they ended."""

    began: float = field(default_factory=time.monotonic)
    spans: list[Span] = field(default_factory=list)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Measure what happens inside, whether it succeeds or not."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.note(name, start)

    def note(self, name: str, start: float) -> None:
        """A step that ends now, and began at `start` (of time.monotonic), in whichever thread."""
        self.spans.append(Span(name, start - self.began, time.monotonic() - start))

    def seconds(self, name: str) -> float:
        """How long the step of that name took; 0 if there was none."""
        return sum(span.seconds for span in self.spans if span.name == name)

    def as_list(self) -> list[dict[str, str | float]]:
        """The spans by when they began, for a reply or a document that `thaw timeline` reads."""
        return [
            {"name": s.name, "start": round(s.start, 6), "seconds": round(s.seconds, 6)}
            for s in self._sorted()
        ]

    def as_dict(self) -> dict[str, float]:
        """Seconds per step, in the same order, for a log line."""
        return {span.name: round(span.seconds, 4) for span in self._sorted()}

    def _sorted(self) -> list[Span]:
        """By when they began, each before its parts."""
        return sorted(self.spans, key=lambda span: (span.start, -span.seconds))
