"""What a worker said, as a few words that can stand in a log line."""

from __future__ import annotations

_MOST = 200  # characters


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
