"""Which signals end a worker."""

from __future__ import annotations

import signal

import pytest

from shim.task.signals import ends


@pytest.mark.parametrize(
    ("number", "good"),
    [
        (signal.SIGTERM, True),
        (signal.SIGKILL, True),
        (signal.SIGINT, True),
        (signal.SIGRTMIN + 3, True),
        (signal.SIGUSR1, False),
        (signal.SIGHUP, False),
        (signal.SIGCHLD, False),
        (0, False),
    ],
)
def test_an_end(number: int, good: bool) -> None:
    assert ends(number) == good
