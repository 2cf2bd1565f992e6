"""What a run has found out so far, in a file that is whole at any time: a crash loses nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Record:
    """A document that is written anew whenever something is put into it."""

    def __init__(self, path: str, found: dict[str, Any] | None = None) -> None:
        self._path = Path(path) if path else None
        self.found: dict[str, Any] = found if found is not None else {}

    @classmethod
    def opened(cls, path: str) -> Record:
        """One that goes on with what an earlier run has put into the file, if there is one."""
        there = bool(path) and Path(path).exists()
        return cls(path, json.loads(Path(path).read_text()) if there else {})

    def put(self, what: object, *place: str) -> None:
        """Note something at a place, such as ("workers", "8B", "stock")."""
        at = self.found
        for name in place[:-1]:
            at = at.setdefault(name, {})
        at[place[-1]] = what
        self.save()

    def add(self, what: object, name: str) -> None:
        """Note something as the last of a list."""
        self.found.setdefault(name, []).append(what)
        self.save()

    def save(self) -> None:
        """Write it; another reader sees the old document or the new one."""
        if self._path is not None:
            new = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            new.write_text(json.dumps(self.found, indent=1) + "\n")
            new.rename(self._path)


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"gpu: {what}", flush=True)
