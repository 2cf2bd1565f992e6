"""Pods whose pull has failed are refused for a while; operators never are."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.artifacts import Artifact, left
from fakes.registry import Registry, Request

from shim.config import Config
from shim.errors import Cancelled, Damaged, NoSuchSnapshot, RegistryFailed, StoreFull, Unfit
from shim.reference import Reference, parse
from shim.registry import failures, pull
from shim.registry.failures import FIRST, LONGEST, Notes
from shim.snapshot.store import Store

Pull = Callable[[], str]


@pytest.fixture
def for_pod(there: Store, reference: Reference, config: Config) -> Pull:
    return lambda: pull(there, reference, config, who="pod team/one")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock."""
    found = [time.time()]
    monkeypatch.setattr("shim.registry.failures.time.time", lambda: found[0])
    return found


@pytest.fixture
def damaged(registry: Registry, pushed: str) -> str:
    """The digest of a blob that the registry has not as it should."""
    digest = max(registry.blobs, key=lambda digest: len(set(registry.blobs[digest])))
    registry.blobs[digest] = bytes(len(registry.blobs[digest]))
    return digest


def test_a_damaged_artifact_is_not_fetched_again(
    registry: Registry, for_pod: Pull, damaged: str, now: list[float]
) -> None:
    with pytest.raises(Damaged, match=damaged):
        for_pod()
    registry.forget()
    with pytest.raises(Damaged, match=rf"{damaged} came as .* not tried again for 60 s"):
        for_pod()
    assert registry.count("GET", "/blobs/") == 0
    now[0] += FIRST + 1
    with pytest.raises(Damaged, match=f"{damaged} came as [^;]*$"):
        for_pod()
    assert registry.count("GET", damaged) == 1


def test_an_operator_is_not_refused(
    registry: Registry,
    there: Store,
    reference: Reference,
    config: Config,
    for_pod: Pull,
    damaged: str,
) -> None:
    with pytest.raises(Damaged):
        for_pod()
    for _ in range(2):
        with pytest.raises(Damaged, match=f"{damaged} came as [^;]*$"):
            pull(there, reference, config)
    with pytest.raises(Damaged, match=f"{damaged} came as [^;]*$"):  # the note is gone
        for_pod()


def test_another_repository_is_not_refused(
    registry: Registry,
    there: Store,
    config: Config,
    for_pod: Pull,
    damaged: str,
) -> None:
    with pytest.raises(Damaged):
        for_pod()
    elsewhere = parse(f"{registry.host}/other/worker:1")
    with pytest.raises(Damaged, match=r"came as [^;]*$"):
        pull(there, elsewhere, config, who="pod team/one")


def test_a_mended_artifact(
    registry: Registry,
    there: Store,
    for_pod: Pull,
    now: list[float],
    pushed: str,
    damaged: str,
    artifact: Artifact,
) -> None:
    with pytest.raises(Damaged):
        for_pod()
    now[0] += FIRST + 1
    registry.blobs.update(artifact.blobs)
    assert there.snapshot(for_pod()).digest == pushed
    assert left(there) == []


def test_the_pauses_grow(there: Store, now: list[float]) -> None:
    there.folder.mkdir()
    pauses = []
    for _ in range(9):
        notes = Notes(there.folder, "registry/worker:1")
        notes.refuse()
        notes.add(Damaged("bad"))
        last = notes._last()
        assert last
        pauses.append(last.pause)
        now[0] += last.pause
    assert pauses[:3] == [FIRST, 2 * FIRST, 4 * FIRST]
    assert pauses[-1] == LONGEST
    now[0] += 2 * 86400
    Notes(there.folder, "registry/worker:1").add(StoreFull("full"))
    with pytest.raises(StoreFull, match="full; registry/worker:1 is not tried again for 60 s"):
        Notes(there.folder, "registry/worker:1").refuse()
    now[0] -= 7200  # the clock was wrong
    Notes(there.folder, "registry/worker:1").refuse()


def test_being_refused_is_no_failure(there: Store, now: list[float]) -> None:
    there.folder.mkdir()
    Notes(there.folder, "x").add(Unfit("bad"))
    for _ in range(3):
        notes = Notes(there.folder, "x")
        with pytest.raises(Unfit) as caught:
            notes.refuse()
        notes.add(caught.value)
    now[0] += FIRST
    Notes(there.folder, "x").refuse()


def test_who_is_away_is_asked_again_soon(there: Store, now: list[float]) -> None:
    there.folder.mkdir()
    for error in (Cancelled("over"), NoSuchSnapshot("none")):
        Notes(there.folder, "x").add(error)
    assert left(there) == []
    for _ in range(5):
        Notes(there.folder, "x").add(RegistryFailed("away"))
    with pytest.raises(RegistryFailed, match="away"):
        Notes(there.folder, "x").refuse()
    now[0] += FIRST
    Notes(there.folder, "x").refuse()


def test_a_registry_that_fails_is_not_asked(
    there: Store, registry: Registry, for_pod: Pull
) -> None:
    def play(request: Request) -> bool:
        request.answer(500)
        return True

    there.folder.mkdir(mode=0o700)
    registry.play = play
    with pytest.raises(RegistryFailed, match="500"):
        for_pod()
    registry.forget()
    with pytest.raises(RegistryFailed, match=r"500.*not tried again"):
        for_pod()
    assert registry.asked == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"count": "x"}', '{"count": 1, "time": 1e999}', "[" * 9999]
)
def test_a_note_that_is_none(there: Store, text: str) -> None:
    there.folder.mkdir()
    notes = Notes(there.folder, "x")
    notes.add(Damaged("bad"))
    (path,) = there.folder.rglob(failures._FILE)
    path.write_text(text)
    notes.refuse()
    notes.add(Damaged("bad"))
    with pytest.raises(Damaged):
        notes.refuse()


def test_a_disk_that_takes_no_note(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "none", "x")
    notes.add(Damaged("bad"))
    notes.refuse()
    notes.clear()
