"""Programs with the GPU memory library in them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fakes.gpu import Program
from fakes.gpu_conversation import Conversation


@pytest.fixture
def library(program: Program) -> Iterator[Conversation]:
    """What an engine says to the library of `program`."""
    with Conversation(program.pid) as started:
        yield started


def about(program: Program) -> tuple[int, dict[str, int]]:
    """Bytes that can be moved, and those that cannot, by reason."""
    with Conversation(program.pid) as library:
        told = library.about()
        return told.movable, told.left


def open_descriptors(program: Program) -> int:
    return len(os.listdir(f"/proc/{program.pid}/fd"))
