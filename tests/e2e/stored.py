"""The store of a lane as tests see it: where a name leads, spoilt copies, and clearing up."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bed.lane import Lane

from shim import names
from shim._native import lib
from shim.reference import parse
from shim.snapshot.config import canonical


def path_of(lane: Lane, name: str) -> Path:
    """The folder of the snapshot that a name leads to."""
    found = names.find([str(lane.places.snapshots)], parse(name))
    assert found is not None, f"no snapshot {name}"
    return Path(found)


def exists(lane: Lane, name: str) -> bool:
    """Whether the lane's store has that name."""
    return names.find([str(lane.places.snapshots)], parse(name)) is not None


def copied_snapshot(lane: Lane, name: str, copy: str) -> Path:
    """A copy of a snapshot under another name, for spoiling; not sealed."""
    store = lane.places.snapshots
    id = os.urandom(names.ID_LENGTH // 2).hex()
    target = store / names.SNAPSHOTS / id
    shutil.copytree(path_of(lane, name), target, symlinks=True)
    (store / names.NAMES / copy).write_text(f"{id}\n")
    return target


def edit_config(snapshot: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a snapshot's config document in place, as whoever knows how to would."""
    path = snapshot / "config.json"
    document = json.loads(path.read_text())
    change(document)
    del document["checksum"]
    data = canonical(document)
    document["checksum"] = lib.thaw_crc32c(0, data, len(data))
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def note_file(snapshot: Path, *changed: str) -> None:
    """Let the config document say what these files are now."""

    def change(document: dict[str, Any]) -> None:
        for name in changed:
            data = (snapshot / name).read_bytes()
            sum = lib.thaw_crc32c(0, data, len(data))
            document["files"][name] = {"size": len(data), "crc32c": sum}

    edit_config(snapshot, change)


def ids(lane: Lane) -> set[str]:
    """The ids of all snapshots of the lane's store."""
    folder = lane.places.snapshots / names.SNAPSHOTS
    return set(os.listdir(folder)) if folder.is_dir() else set()


def forget_snapshots(lane: Lane, kept: set[str]) -> None:
    """Delete the whole snapshots that a test made, and their names; all else counts as a leak."""
    store = lane.places.snapshots
    for id in ids(lane) - kept:
        path = store / names.SNAPSHOTS / id
        if names.is_id(id) and stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
    for folder in (names.NAMES, names.DIGESTS):
        for path in (store / folder).glob("*"):
            if names.read_id(str(path)) not in ids(lane):
                path.unlink()
    (store / "key").unlink(missing_ok=True)


def forget(lane: Lane, name: str) -> None:
    """Delete the snapshot that a name leads to, and the name."""
    shutil.rmtree(path_of(lane, name), ignore_errors=True)
    (lane.places.snapshots / names.NAMES / name).unlink()
