"""`thaw` on a node with stores of its own."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shim.cli import main, progress
from shim.snapshot.store import Store


@dataclass
class Said:
    """What a call printed, and its status."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Thaw:
    """`thaw` with a configuration of its own: two stores, an audit log."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.store = Store(folder / "snapshots", [folder / "stripe"])
        self.second = Store(folder / "second", [folder / "stripe"])
        self._file = folder / "config.toml"
        self._audit = folder / "audit.log"
        self._capsys = capsys
        self.configure()

    def configure(self, **values: str | float) -> None:
        """Write the configuration; `a__b` is the key `a.b`."""
        stores = f"{self.store.folder}:{self.second.folder}"
        known = {
            "snapshots": stores,
            "stripes": str(self.store.stripes[0]),
            "audit.log": str(self._audit),
            **{name.replace("__", "."): value for name, value in values.items()},
        }
        text = [f"{name} = {json.dumps(value)}\n" for name, value in known.items()]
        self._file.write_text("".join(text))

    def __call__(self, *words: str) -> Said:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(progress, "BETWEEN", math.inf)  # a slow machine says no more
            status = main([*words, "--config", str(self._file)])
        said = self._capsys.readouterr()
        return Said(status, said.out, said.err)

    @property
    def audited(self) -> list[dict[str, str]]:
        """The lines of the audit log, without who and when."""
        if not self._audit.exists():
            return []
        lines = [json.loads(line) for line in self._audit.read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in ("time", "who")} for line in lines]
