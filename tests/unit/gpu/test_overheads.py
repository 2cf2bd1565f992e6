"""What a program pays for the library is told twice, with it and without."""

from __future__ import annotations

from pathlib import Path

import pytest
from bed.lane import Installation
from gpu.machine import Machine
from gpu.overheads import measured

PRODUCT = "#!/bin/sh\necho libm.so.6\n"  # where the library is; any will do
PROGRAM = """#!/bin/sh
[ "$*" = "-m gpu.overhead cpu" ] || exit 3
echo "a warning"
[ -n "$LD_PRELOAD" ] && echo '{"launch": 2.0}' || echo '{"launch": 1.0}'
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_it_is_measured_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    program(tmp_path / "python", PRODUCT)
    machine = Machine(str(program(tmp_path / "worker", PROGRAM)), (tmp_path,), None)
    found = measured(machine, Installation(tmp_path), "cpu")
    assert found == {"driver": {"launch": 1.0}, "library": {"launch": 2.0}}
    with pytest.raises(RuntimeError, match="exit 3"):
        measured(machine, Installation(tmp_path), "cuda")
