"""A copy into a snapshot measures itself, keeps to its budget, and can be given up at any time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.regions import MIB, PATIENCE, Machine, machine_of, pattern
from fakes.settled import eventually

from shim.errors import CheckpointFailed
from shim.gpu.memory import saving
from shim.gpu.memory.device import CopyOut, Region
from shim.gpu.memory.saving import Saving
from shim.timeline import Timeline

PIECE = "gpu-1.img.0000"
WAITS = "cuEventSynchronize"  # of each buffer that was copied to


@pytest.fixture(scope="module")
def machine(gpus: FakeCuda) -> Iterator[Machine]:
    with machine_of(gpus) as made:
        yield made


@pytest.fixture
def region(machine: Machine) -> Region:
    return machine.with_data(pattern("x" * 160, 4))


@contextmanager
def begun(region: Region, folder: Path, **more: Any) -> Iterator[tuple[Saving, Timeline]]:
    timeline = Timeline()
    made = Saving([region], [folder], timeline, **more)
    yield made, timeline
    made.close()


def names(timeline: Timeline) -> list[str]:
    return [span.name for span in timeline.spans]


def test_nobody_need_wait_for_it_to_be_measured(region: Region, tmp_path: Path) -> None:
    """The worker may be dumped for longer than that: it is no part of the figure."""
    with begun(region, tmp_path) as (copy, timeline):
        eventually(lambda: names(timeline) == ["scan", "copy"])
        saved = copy.finish()
        assert names(timeline) == ["scan", "copy"]
    assert (saved.stored, saved.total) == (10 * MIB, 10 * MIB)
    assert (tmp_path / PIECE).stat().st_size == 10 * MIB


def test_it_keeps_to_its_budget(
    region: Region, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    class Told(CopyOut):
        def __init__(self, *words: Any, budget: int) -> None:
            told.append(budget)
            super().__init__(*words, budget=budget)

    monkeypatch.setattr(saving, "CopyOut", Told)
    with begun(region, tmp_path, budget=9 * MIB) as (copy, _):
        assert copy.finish().stored == 10 * MIB
    assert told == [9 * MIB]


@pytest.mark.parametrize("call", [WAITS, "cuStreamSynchronize"])
def test_given_up(machine: Machine, region: Region, tmp_path: Path, call: str) -> None:
    """While it copies, or while it looks for what is not zero; nothing stays of it."""
    before = machine.cuda.count(call)
    with ThreadPoolExecutor() as pool:
        with machine.cuda.held(call):
            copy = Saving([region], [tmp_path], Timeline())
            eventually(lambda: machine.cuda.count(call) > before)
            cancelling = pool.submit(copy.cancel)
            eventually(lambda: copy._cancelled)
        cancelling.result(PATIENCE)
    for wait in (copy.wait_read, copy.finish):
        with pytest.raises(CheckpointFailed, match="was not saved"):
            wait()
    copy.close()
    assert list(tmp_path.iterdir()) == []
