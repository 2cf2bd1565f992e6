"""How tests/gpu goes through its parts: each for itself, within a limit, and nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gpu import run
from gpu.ceilings import disk
from gpu.flow import Restores
from gpu.record import Record
from gpu.run import Late, arguments


class Lane:
    """What a part leaves a lane with."""

    def __init__(self, pods: Path) -> None:
        self.cleared = 0
        self.places = SimpleNamespace(pods=pods)
        (pods / "pod/worker").mkdir(parents=True)
        (pods / "pod/worker/0.log").write_text("what it has said")

    def log(self, lines: int) -> str:
        return "the log"

    def clear(self) -> None:
        self.cleared += 1

    def forget(self) -> None:
        pass


def attempt(name: str, limit: int, record: Record, lane: Lane) -> bool:
    args = cast("Any", SimpleNamespace(limit=limit))
    return run._attempt(cast("Any", lane), args, name, record)


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        (lambda *_: None, "done"),
        (lambda *_: 1 / 0, "division by zero"),
        (lambda *_: time.sleep(30), "part took longer than 1 s"),
    ],
)
def test_what_became_of_a_part(
    act: Any,
    outcome: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(run.PARTS, "part", act)
    path, lane = tmp_path / "found.json", Lane(tmp_path / "pods")
    assert attempt("part", 1, Record(str(path)), lane) is (outcome == "done")
    assert Record.opened(str(path)).found["parts"]["part"]["outcome"] == outcome
    assert ("what it has said" in capsys.readouterr().err) is (outcome != "done")
    assert lane.cleared == 1


def test_a_limit_ends_with_its_block() -> None:
    with run._within(1, "this"):
        pass
    time.sleep(1.2)  # nobody is told of it any longer
    with pytest.raises(Late, match="that took longer than 1 s"), run._within(1, "that"):
        time.sleep(30)


def test_what_is_asked_for() -> None:
    args = arguments(["--only", "pytorch,faults", "--set", "a=1", "--set", "b=2", "--cold", "0"])
    assert set(args.only.split(",")) <= set(run.PARTS)
    assert args.set == ["a=1", "b=2"]
    assert Restores(args.cold, 2).conditions == ["warm", "warm"]


def test_the_disk_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.write_bytes(bytes(32 << 20))
    assert disk([path]) > 0
    assert disk([]) == 0.0
