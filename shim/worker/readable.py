"""What a worker said, as a few words that can stand in a log line."""

from __future__ import annotations

import os

_MOST = 200  # characters
_CHUNK = 65536  # bytes per read


def rest_of(fd: int, most: int) -> bytes:
    """What a pipe holds now, about `most` bytes of it; somebody may hold its other end for ever.

    The pipe does not block from here on.
    """
    os.set_blocking(fd, False)
    found = b""
    try:
        while len(found) < most and (data := os.read(fd, _CHUNK)):
            found += data
    except BlockingIOError:
        pass
    return found


def excerpt(said: bytes) -> str:
    """The beginning of it on one line, without anything that steers a terminal."""
    text = said[: 4 * _MOST].decode("utf-8", "replace")
    line = " ".join(text.split())
    shown = "".join(c if c.isprintable() else "?" for c in line)
    return shown if len(shown) <= _MOST else f"{shown[:_MOST]}…"


def end_of(said: bytes, most: int) -> str:
    """The last `most` bytes of it, line by line, as harmless; "" for nothing."""
    text = said[-most:].decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
