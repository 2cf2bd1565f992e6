"""How tests/gpu goes through its parts: each for itself, within a limit, and nothing is lost."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gpu import faults, moved_faults, run
from gpu.ceilings import disk
from gpu.flow import Restores
from gpu.record import Record
from gpu.run import Late, arguments
from gpu.store import mounted
from gpu.subject import pytorch


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
    ("act", "limit", "outcome"),
    [
        (lambda *_: None, 60, "done"),
        (lambda *_: 1 / 0, 60, "division by zero"),
        (lambda *_: time.sleep(30), 1, "part took longer than 1 s"),
    ],
)
def test_what_became_of_a_part(
    act: Any,
    limit: int,
    outcome: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(run.PARTS, "part", act)
    path, lane = tmp_path / "found.json", Lane(tmp_path / "pods")
    assert attempt("part", limit, Record(str(path)), lane) is (outcome == "done")
    assert Record.opened(str(path)).found["parts"]["part"]["outcome"] == outcome
    assert ("what it has said" in capsys.readouterr().err) is (outcome != "done")
    assert lane.cleared == 1


def test_a_limit_ends_with_its_block() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with run._within(60, "this"):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == before
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


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], ["pytorch-1g 0", "stock"]),
        (["--paths", "library,driver"], ["pytorch-1g 0", "pytorch-1g-driver 0", "stock"]),
        (
            ["--rounds", "2", "--paths", "driver,library"],
            ["pytorch-1g-driver 0", "pytorch-1g 2", "stock"],
        ),
        (["--label", "x", "--stock", "0,0"], ["pytorch-1g-x 0"]),
    ],
)
def test_ways_of_a_worker(words: list[str], wanted: list[str], monkeypatch: Any) -> None:
    """As it is, with its GPU memory left to the driver, and with stock CRIU."""
    done: list[str] = []
    through = lambda _lane, subject, restores, *_: done.append(  # noqa: E731
        f"{subject.name} {restores.rounds}"
    )
    monkeypatch.setattr(run, "through_containerd", through)
    monkeypatch.setattr(run, "stock", lambda *_: done.append("stock"))
    args = arguments(["--stock", "0,1", *words])
    run._both(cast("Any", None), args, pytorch(1), Record(""))
    assert done == wanted


def test_faults_are_what_they_are_said_to_be() -> None:
    """Each has a name of its own, in the module's text, too."""
    for module in (faults, moved_faults):
        text = module.__doc__ or ""
        for name in module.ALL:
            who, at, stage = name.partition("-at-")
            assert (f"{who}-at-" if at else name) in text or "WHO-at-STAGE" in text
            assert stage in text
    assert not set(faults.ALL) & set(moved_faults.ALL)


def test_damages(tmp_path: Path) -> None:
    path = tmp_path / "gpu-1.img.0000"
    for damage in (moved_faults._flip, moved_faults._cut):
        path.write_bytes(bytes(1 << 20))
        damage(path)
        assert path.read_bytes() != bytes(1 << 20)
    assert path.stat().st_size == 1 << 19


def test_a_store_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    with mounted(folder, "size=1m"):
        assert folder.is_mount()
        (folder / "snapshots").mkdir()
    assert not folder.is_mount()
    assert not list(folder.iterdir())
