"""A bar on a terminal, lines elsewhere."""

from __future__ import annotations

import argparse
import os
import sys
import time

import pytest

from shim.cli.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def args(*, quiet: bool = False) -> argparse.Namespace:
    return argparse.Namespace(quiet=quiet)


def test_a_line_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(args(), "verify\x1b", 4 << 20) as progress:
        for _ in range(8):
            clock[0] += 1
            progress(1 << 19)
    assert (progress.done, progress.seconds) == (4 << 20, 8)
    assert capsys.readouterr() == ("", "verify\\x1b: 2.5 MiB of 4.0 MiB, 512.0 KiB/s\n")


def test_quiet(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(args(quiet=True), "verify") as progress:
        clock[0] += 60
        progress(1)
    assert capsys.readouterr() == ("", "")


def test_a_total_that_grows(clock: list[float]) -> None:
    progress = Progress(args(), "pull")
    progress(512)
    clock[0] += 1
    assert progress.figures == "512 B, 512 B/s"
    progress.expect(2048)
    progress(-512)
    assert progress.figures == "0 B of 2.0 KiB, 0 B/s"


def test_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with open(theirs, "w", closefd=True) as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress(args(), "verify [red]one", 2048) as progress:
            progress(1024)
            assert progress._bar is not None
            progress._bar.refresh()
    shown = b"".join(iter(lambda: _more(ours), b"")).decode()
    os.close(ours)
    assert "verify [red]one" in shown
    assert "1.0 KiB of 2.0 KiB" in shown


def _more(terminal: int) -> bytes:
    """What a terminal has got; nothing once it is closed and read out."""
    try:
        return os.read(terminal, 1 << 16)  # maybe up to the middle of a character
    except OSError:
        return b""
