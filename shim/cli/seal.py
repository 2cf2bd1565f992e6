"""Sealing with a bar: what `export` and `verify --seal` do."""

from __future__ import annotations

import argparse

from shim.cli.progress import Progress
from shim.snapshot.artifact import seal, size_to_seal
from shim.snapshot.store import Snapshot


def sealed(args: argparse.Namespace, snapshot: Snapshot, threads: int = 0) -> str:
    """The digest of a snapshot, "sha256:…"; it is computed unless it is known.

    Raises Unfit, StoreFull, FailedPrecondition.
    """
    if snapshot.digest:
        return seal(snapshot)  # notes it in the store, if that has been missed
    with Progress(args, "digests", size_to_seal(snapshot)) as progress:
        return seal(snapshot, threads, progress)
