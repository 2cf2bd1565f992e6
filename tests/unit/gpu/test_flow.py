"""A worker's way through containerd, as tests/gpu notes it; the way itself needs a containerd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from gpu.flow import Restores, through_containerd
from gpu.lane import Boot
from gpu.record import Record
from gpu.subject import pytorch

ANSWER = {"memory": [1], "graph": [2]}


class Pod:
    """One that nobody can ask."""

    id = ip = ""


class Lane:
    """One whose worker takes as long as it is told."""

    def __init__(self, snapshot: Path, seconds: list[float]) -> None:
        self.newest = lambda: snapshot
        self.seconds = iter(seconds)
        self.thaw = self.clear = self.forget = lambda *_: None

    def boot(self, *_: object) -> tuple[Boot, Pod, Pod]:
        return Boot(0.1, 0.2, 0.3, next(self.seconds), ANSWER, {}), Pod(), Pod()


def test_restores_of_one_snapshot_stand_together(tmp_path: Path, monkeypatch: Any) -> None:
    """A run that goes on with a document makes its own: the best of both would be nobody's."""
    monkeypatch.setattr("gpu.subject.ask", lambda *_: ANSWER)
    told = {"spans": [{"name": "dump", "seconds": 1.0}], "sizes": {"pages": 5}, "gpu": {}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    record = Record("")
    for seconds in ([9.0, 1.0, 1.5], [8.0, 3.0, 4.0]):
        lane = cast("Any", Lane(tmp_path, seconds))
        through_containerd(lane, pytorch(1), Restores(0, 2), record)
    thaw = record.found["workers"]["pytorch-1g"]["thaw"]
    assert thaw["cold"]["answered"] == 8.0
    assert [one["answered"] for one in thaw["restores"]] == [3.0, 4.0]
