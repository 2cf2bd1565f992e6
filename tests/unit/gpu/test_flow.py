"""A worker's way through containerd, as tests/gpu notes it; the way itself needs a containerd."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gpu.flow import Restores, through_containerd
from gpu.lane import Boot
from gpu.record import Record
from gpu.subject import Wrong, pytorch

ANSWER = {"memory": [1], "graph": [2]}
PROCESS = {"pid": 1, "regions": [{"id": 1, "size": 2}, {"id": 2, "size": 3}], "staging": [1, 2]}


class Pod:
    """One that nobody can ask."""

    id = ip = ""


class Lane:
    """One whose worker takes as long as it is told."""

    def __init__(self, snapshot: Path, seconds: list[float]) -> None:
        self.newest = lambda: snapshot
        self.seconds = iter(seconds)
        self.clear = self.forget = lambda *_: None
        self.machine = SimpleNamespace(library=None)
        self.asked: list[tuple[str, ...]] = []
        self.pauses: list[float] = []
        self.restored: dict[str, Any] = {}

    def thaw(self, verb: str, *words: str) -> None:
        self.asked.append((verb, words[-3] if verb == "checkpoint" else words[0]))

    def boot(self, *_: object, pause: float = 0.0) -> tuple[Boot, Pod, Pod]:
        self.pauses.append(pause)
        return Boot(0.1, 0.2, 0.3, next(self.seconds), ANSWER, self.restored), Pod(), Pod()


def prepared(folder: Path, monkeypatch: Any) -> Record:
    """A snapshot there, and workers that answer."""
    monkeypatch.setattr("gpu.subject.ask", lambda *_: ANSWER)
    told = {
        "spans": [{"name": "dump", "seconds": 1.0}],
        "sizes": {"pages": 5},
        "gpu": {"processes": [PROCESS]},
    }
    (folder / "config.json").write_text(json.dumps(told))
    return Record("")


def test_restores_of_one_snapshot_stand_together(tmp_path: Path, monkeypatch: Any) -> None:
    """A run that goes on with a document makes its own: the best of both would be nobody's."""
    record = prepared(tmp_path, monkeypatch)
    for seconds in ([9.0, 1.0, 1.5], [8.0, 3.0, 4.0]):
        lane = cast("Any", Lane(tmp_path, seconds))
        through_containerd(lane, pytorch(1), Restores(0, 2), record)
    thaw = record.found["workers"]["pytorch-1g"]["thaw"]
    assert thaw["cold"]["answered"] == 8.0
    assert [one["answered"] for one in thaw["restores"]] == [3.0, 4.0]
    assert thaw["snapshot"]["gpu"]["processes"] == [{"pid": 1, "regions": [{"size": 5}]}]


def test_snapshots_of_what_was_restored(tmp_path: Path, monkeypatch: Any) -> None:
    """Each is made of a worker that came from the one before, which is removed then."""
    record, lane = prepared(tmp_path, monkeypatch), Lane(tmp_path, [9.0, 1.0, 2.0])
    through_containerd(cast("Any", lane), pytorch(1), Restores(0, 0, rounds=2), record)
    made = record.found["workers"]["pytorch-1g"]["thaw"]["rounds"]
    assert [one["restored"] for one in made] == [1.0, 2.0]
    assert lane.asked == [
        ("checkpoint", "pytorch-1g"),
        ("checkpoint", "pytorch-1g-0"),
        ("rm", "pytorch-1g"),
        ("checkpoint", "pytorch-1g-1"),
        ("rm", "pytorch-1g-0"),
    ]


def test_the_node_s_cache_is_there_for_some(tmp_path: Path, monkeypatch: Any) -> None:
    record, lane = prepared(tmp_path, monkeypatch), Lane(tmp_path, [9.0, 2.0, 1.0, 0.5])
    sizes: list[float] = []

    @contextmanager
    def holding(_: object, gib: float) -> Iterator[None]:
        sizes.append(gib)
        yield
        lane.asked.append(("gone", ""))

    monkeypatch.setattr("gpu.flow.holding", holding)
    lane.restored = {"gpu": {"from": "cache"}}
    through_containerd(cast("Any", lane), pytorch(1), Restores(0, 1, held=1), record)
    restores = record.found["workers"]["pytorch-1g"]["thaw"]["restores"]
    seen = [(one["cache"], one["answered"]) for one in restores]
    assert seen == [("warm", 2.0), ("held", 1.0), ("later", 0.5)]
    assert lane.pauses == [0.0, 0.0, 0.0, 0.5]
    assert lane.asked == [("checkpoint", "pytorch-1g"), ("warm", "pytorch-1g"), ("gone", "")]
    assert len(sizes) == 1
    lane = Lane(tmp_path, [9.0, 1.0])
    with pytest.raises(Wrong, match="not come from the node's cache"):
        through_containerd(cast("Any", lane), pytorch(1), Restores(0, 0, held=1), record)
