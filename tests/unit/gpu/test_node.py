"""The node's GPUs for one restore: asked for once, ahead of need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes.nvml import H100, FakeNvml, machine

from shim.errors import Unfit
from shim.gpu import node
from shim.gpu.node import Node
from shim.gpu.nvml import Gpu


class Asked:
    """What answers for NVML, and how often it was asked."""

    def __init__(self, failures: int = 0) -> None:
        self.times = 0
        self._failures = failures

    def __call__(self) -> Sequence[Gpu]:
        self.times += 1
        if self.times <= self._failures:
            raise Unfit("NVML: on purpose")
        return machine(H100)


def test_once() -> None:
    asked = Asked()
    here = Node(asked)
    here.begin()
    here.begin()
    assert here.gpus() == here.gpus() == machine(H100)
    assert asked.times == 1
    assert here.anew() == machine(H100)
    assert asked.times == 2


def test_somebody_waits_for_whatever_it_answers() -> None:
    asked = Asked(failures=1)
    here = Node(asked)
    here.settle()
    here.settle()
    assert asked.times == 1
    assert here.gpus() == machine(H100)
    assert asked.times == 2


def test_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may come long after its sandbox; and what was wrong may be mended."""
    asked = Asked(failures=3)
    here = Node(asked)
    for times in (2, 3):
        with pytest.raises(Unfit, match="on purpose"):
            here.gpus()
        assert asked.times == times
    assert here.gpus() == here.gpus() == machine(H100)
    assert asked.times == 4
    monkeypatch.setattr(node, "_FRESH", 0.0)
    assert here.gpus() == machine(H100)
    assert asked.times == 5


def test_with_what_is_free_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml(tmp_path)
    fake.use(monkeypatch)
    fake.has(machine(H100))
    here = Node()
    assert here.now() == here.gpus() == machine(H100)
