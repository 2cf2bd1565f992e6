"""The steps of a hook: each has a name, a time limit and a reason, and is timed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from shim.errors import DeadlineExceeded, ThawError, Unavailable

_GRACE = 0.2  # seconds for a step to say by itself what it is waiting for


@dataclass
class Report:
    """What a hook has done, for its caller's timeline: printed as JSON on stdout."""

    steps: list[dict[str, Any]] = field(default_factory=list)  # name, seconds, detail
    warnings: list[str] = field(default_factory=list)


@dataclass
class Step:
    """A step under way. It is over, or fails, before `ends`, on the monotonic clock."""

    ends: float
    detail: str = ""

    def wait(self, why: str) -> None:
        """Wait for a moment. Raises DeadlineExceeded with the reason once the time is over."""
        if time.monotonic() >= self.ends:
            raise DeadlineExceeded(why)
        time.sleep(0.002)


class Steps:
    """Runs steps, one after another, all of them within `seconds`.

    A step that hangs is interrupted by an alarm: this is for the main thread of a process.
    """

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self.report = Report()

    @contextmanager
    def step(self, name: str, seconds: float) -> Iterator[Step]:
        """One step. Whatever fails in it is raised as an error that begins with its name."""
        began = time.monotonic()
        step = Step(min(began + seconds, self._ends))

        def over(*_: object) -> None:
            raise DeadlineExceeded(f"not done after {time.monotonic() - began:.1f} s")

        before = signal.signal(signal.SIGALRM, over)
        limit = max(step.ends - began, 0) + _GRACE
        left, interval = signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            yield step
        except ThawError as error:
            raise type(error)(f"{name}: {error.message}", hint=error.hint) from error
        except Exception as error:  # whatever it is: one line, with the step's name
            raise Unavailable(f"{name}: {str(error) or type(error).__name__}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            took = time.monotonic() - began
            if left:  # an alarm of the caller's
                signal.setitimer(signal.ITIMER_REAL, max(left - took, 0.001), interval)
        self.report.steps.append({"name": name, "seconds": round(took, 6), "detail": step.detail})

    def warn(self, text: str) -> None:
        """Something that a person should know, and that stops nothing."""
        self.report.warnings.append(text)
