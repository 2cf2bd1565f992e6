"""A line in a list of snapshots."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING

from shim.lean.values import Value

if TYPE_CHECKING:
    from shim.snapshot.snapshot import Snapshot


class Entry(Value):
    """One snapshot of a store as a list shows it, readable or not. Times are Unix times."""

    id: str
    names: list[str] = field(default_factory=list)  # as they are written: references
    digest: str = ""  # "sha256:…"; empty while it is not sealed
    shared: bool = False
    used: float = 0.0  # when it was last restored; 0.0: never
    created: float = 0.0
    size: int = 0  # bytes on disk
    error: str = ""  # why it cannot be read
    snapshot: Snapshot | None = None
