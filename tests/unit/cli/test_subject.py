"""What a verb can be told to look into."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from fakes import looked
from fakes.command import Thaw

from shim.cli import subject
from shim.config import Config
from shim.errors import BadName, InvalidArgument, NoSuchSnapshot, NotFound


@pytest.fixture
def config(thaw: Thaw) -> Config:
    stripes = str(thaw.store.stripes[0])
    return Config({"snapshots": str(thaw.store.folder), "stripes": stripes})


def test_a_reference(thaw: Thaw, config: Config) -> None:
    made = looked.snapshot(thaw.store, "one")
    with subject.opened("one", config) as found:
        assert found.snapshot is not None
        assert (found.path, found.images, found.index) == (made.path, made.criu, made.index)
        assert found.pieces == made.pages
        assert found.look().notes == []
    with subject.opened(made.id, config) as found:
        assert found.path == made.path


def test_a_path_to_a_snapshot(thaw: Thaw, config: Config) -> None:
    made = looked.snapshot(thaw.store, "one")
    with subject.opened(str(made.path), config) as found:
        assert found.snapshot is not None
        assert found.snapshot.roots == made.roots


def test_a_folder_of_images(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = looked.images(tmp_path / "made" / "criu")
    monkeypatch.chdir(images)
    for text in (str(images), str(images.parent), "."):
        with subject.opened(text, config) as found:
            assert found.snapshot is None
            assert found.pieces is None
            assert found.images.resolve() == images
            assert len(found.look().processes) == 3


def test_it_cannot_be_removed_meanwhile(thaw: Thaw, config: Config) -> None:
    made = looked.snapshot(thaw.store, "one")
    fd = os.open(made.path / "lock", os.O_RDWR)
    with subject.opened("one", config), pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_what_is_none(tmp_path: Path, config: Config) -> None:
    for text, error in (
        ("none", NoSuchSnapshot),
        ("No", BadName),
        ("", BadName),
        (str(tmp_path), InvalidArgument),
        (f"{tmp_path}/none", NotFound),
    ):
        with pytest.raises(error), subject.opened(text, config):
            pass
