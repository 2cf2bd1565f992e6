"""What becomes of a checkpoint by its trial, which is played here; test_verify.py has real ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.dumping import Criu, left, made

from shim.checkpoint.engine import checkpoint
from shim.checkpoint.verifying import RESTORED
from shim.errors import Damaged, RestoreFailed, ThawError, TrialFailed
from shim.snapshot.pack import unpacked
from shim.snapshot.snapshot import Snapshot, check_whole, open_at
from shim.trial import engine as trials
from shim.work import Work


class Played:
    """The trials that there were: each finds a whole snapshot, and fails as it is told to."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.seen: list[Snapshot] = []
        self.ended: list[str] = []

    def __call__(self, work: Work, snapshot: Snapshot) -> Played:
        check_whole(snapshot, skeleton=True)
        assert snapshot.config.verified == ""
        assert work.id == "c"
        self.seen.append(snapshot)
        return self

    def run(self) -> None:
        if self.error is not None:
            raise self.error

    def end(self, why: Exception, seconds: float) -> None:
        self.ended.append(str(why))
        assert seconds > 0


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played()
    monkeypatch.setattr(trials, "Trial", played)
    return played


def wanting(work: Work, **changes: Any) -> Work:
    audit = str(work.folder.parent / "audit")
    config = {**work.raw["config"], "checkpoint.verify": "restore", "audit.log": audit}
    return Work.parse({**work.raw, **changes, "config": config})


def test_nobody_wants_it(work: Work, criu: Criu, trial: Played, tmp_path: Path) -> None:
    assert checkpoint(work)["verified"] == ""
    assert made(tmp_path).config.verified == ""
    assert trial.seen == []


@pytest.mark.parametrize("ends", [False, True])
def test_it_is_tried_before_it_is_published(
    work: Work, criu: Criu, trial: Played, tmp_path: Path, ends: bool
) -> None:
    assert checkpoint(wanting(work, exit=ends))["verified"] == RESTORED
    snapshot = made(tmp_path)
    (seen,) = trial.seen
    assert seen.path.name == f".draft-{snapshot.id}", "that very one, and once"
    assert snapshot.config.verified == RESTORED
    assert "verify" in [span.name for span in snapshot.config.spans]
    assert snapshot.config.files == seen.config.files
    assert (snapshot.path / "config.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("error", [RestoreFailed("the cause", hint="h"), Damaged("the cause")])
def test_one_that_cannot_be_restored_is_not(
    work: Work, criu: Criu, trial: Played, tmp_path: Path, ends: bool, error: ThawError
) -> None:
    trial.error = error
    said = rf"^the snapshot cannot be restored, .* published; c runs on: {error.reason}: the cause$"
    with pytest.raises(TrialFailed) as failed:
        checkpoint(wanting(work, exit=ends))
    assert re.match(said, failed.value.message), "whoever waits for the end is told no other thing"
    assert failed.value.hint == error.hint or "checkpoint.verify" in failed.value.hint
    assert left(tmp_path) == []
    (line,) = (json.loads(line) for line in (tmp_path / "audit").read_text().splitlines())
    assert (line["outcome"], line["reason"]) == ("failed", "TrialFailed")


def test_one_that_cannot_be_tried_is(work: Work, criu: Criu, trial: Played, tmp_path: Path) -> None:
    trial.error = trials.NotTried("no room")
    reply = checkpoint(wanting(work))
    assert reply["verified"] == made(tmp_path).config.verified == "not restored: no room"
    (line,) = (json.loads(line) for line in (tmp_path / "audit").read_text().splitlines())
    assert (line["outcome"], line["verified"]) == ("made", "not restored: no room")


def test_into_containerds_folder(work: Work, criu: Criu, trial: Played, tmp_path: Path) -> None:
    images = tmp_path / "images"
    checkpoint(wanting(work, name="", path=str(images)))
    extras = unpacked(images)
    assert extras is not None
    assert open_at(extras, images=images).config.verified == RESTORED
    assert [(seen.path, seen.criu) for seen in trial.seen] == [(images / "thaw", images)]


def test_whoever_ends_us_ends_the_trial(work: Work, criu: Criu, trial: Played) -> None:
    ends: list[Callable[[], None]] = []
    checkpoint(wanting(work), ends)
    for one in ends:
        one()
    assert trial.ended == ["nobody waits for it any longer"]
