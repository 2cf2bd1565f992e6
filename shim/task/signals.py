"""The signals that end a worker: what has to be done before its end is done when one comes."""

from __future__ import annotations

# Whatever stops a worker that has time to end: INT, QUIT, TERM, WINCH (of httpd), PWR and RTMIN+3
# (of systemd); the others tell it something.
STOPS = (2, 3, 15, 28, 30, 37)
TERM, KILL = 15, 9


def ends(signal: int) -> bool:
    """Whether a worker is not expected to live on after it."""
    return signal == KILL or signal in STOPS
