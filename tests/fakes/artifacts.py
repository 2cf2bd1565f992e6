"""Snapshots to be pushed and pulled, and what is left of that in a store."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fakes import snapshots
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.store import Store

PIECE = 300_000 // 4096 * 4096


class Artifact(NamedTuple):
    """What a registry has once a snapshot was pushed: nobody may change it."""

    digest: str
    blobs: dict[str, bytes]
    manifests: dict[str, bytes]
    files: dict[str, bytes]  # of the snapshot


def made(store: Store, name: str = "worker", seed: int = 1) -> Snapshot:
    """A snapshot with pages: a random piece, one with zeros in it, one of nothing else."""
    noise = random.Random(seed).randbytes(PIECE)
    zeros = bytes(PIECE)
    pieces = {
        "pages-1.img.0000": noise,
        "pages-1.img.0001": noise[: PIECE // 3] + zeros[: -(PIECE // 3)],
        "pages-1.img.0002": zeros,
    }
    what = replace(snapshots.CONFIG, pages={name: len(data) for name, data in pieces.items()})
    with store.draft(name) as draft:
        snapshots.write(draft.path, what)
        for number, (piece, data) in enumerate(pieces.items()):
            (draft.path / "pages" / piece).unlink()
            (draft.pages[number % len(draft.pages)] / piece).write_bytes(data)
    return store.snapshot(draft.id)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def left(store: Store) -> list[str]:
    """What of pulls and drafts is in a store."""
    return sorted(name for name in os.listdir(store.folder) if name.startswith("."))


@contextmanager
def disk(folder: Path, options: str) -> Iterator[None]:
    """A disk of its own at a new folder."""
    folder.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
